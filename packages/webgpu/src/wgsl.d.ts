/** The text of a kernel: bundlers inline it. */
declare module "*.wgsl" {
  const source: string;
  export default source;
}

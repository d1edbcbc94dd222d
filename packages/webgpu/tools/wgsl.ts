import { readFile } from "node:fs/promises";
import type { Plugin } from "esbuild";

/** WGSL files as text, without their comments and the blanks at the ends of lines, which nobody needs at run time. */
export const wgsl: Plugin = {
  name: "wgsl",
  setup: ({ onLoad }) =>
    onLoad({ filter: /\.wgsl$/ }, async ({ path }) => {
      const text = await readFile(path, "utf8");
      return { loader: "text", contents: text.replaceAll(/\/\/.*/g, "").replaceAll(/\s*\n\s*/g, "\n") };
    }),
};

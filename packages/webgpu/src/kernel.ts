import { bytesPerElement, type DType, type FloatDType } from "@moba-js/tensor";

/**
 * How a kernel sees a buffer.
 * - `quads`: a float tensor of any dtype, four elements at a time: `x_quad(i)`, and `x_set(i, v)` when written.
 * - `rows`: rows of `p.d` elements of a float tensor, four channels at a time, zeros after the row's end: `x_row(begin, c)`;
 *   when written, float32 only: `x_put(begin, c, v)`, or added to: `x_add(begin, c, v)`.
 * - `elements`: a float tensor of any dtype, element by element: `x_at(i)`.
 * - others: a plain `array<…>`.
 *
 * A kernel counts from the beginning of the whole tensor, also where only some of it is bound: the functions subtract `p.x_from`, the
 * place of the first that is bound (in groups of four, elements, or items of the array); kernels that index a plain array that may be
 * bound in part do so themselves.
 */
export type Element =
  | "quads"
  | "rows"
  | "elements"
  | "f32"
  | "u32"
  | "i32"
  | "vec2<f32>"
  | "vec4<f32>"
  | "vec4<u32>";

/** One buffer that a kernel reads, or reads and writes. */
export interface Binding {
  readonly element: Element;
  readonly access: "read" | "write";
}

/** A buffer that is read. */
export const read = (element: Element): Binding => ({ element, access: "read" });
/** A buffer that is written. */
export const write = (element: Element): Binding => ({ element, access: "write" });

/** The WGSL types of a kernel's parameters. */
export type ScalarType = "u32" | "i32" | "f32";

/**
 * A kernel: the body in WGSL, and what the host and it have to agree on. The declarations of buffers, parameters and constants
 * are generated from this, so the two cannot disagree.
 */
export interface Kernel<B extends string = string, P extends string = string> {
  readonly name: string;
  /** WGSL with an entry point `main`. */
  readonly source: string;
  /** In the order of their binding numbers. */
  readonly bindings: Readonly<Record<B, Binding>>;
  /** Numbers that change from launch to launch: `p.name`. */
  readonly params: Readonly<Record<P, ScalarType>>;
}

/** Declares a kernel: the names of its buffers and parameters become part of its type. */
export const kernel = <B extends string, P extends string>(definition: Kernel<B, P>): Kernel<B, P> =>
  definition;

/** What one pipeline of a kernel is made for. */
export interface Specialization {
  /** Module constants: booleans, and unsigned integers. */
  readonly constants: Readonly<Record<string, number | boolean>>;
  /** The dtype of each float buffer, in the order of the bindings. */
  readonly dtypes: Readonly<Record<string, DType>>;
  /** Whether rows are a multiple of four elements long, so that they are read as vectors. */
  readonly vector: boolean;
  /** Read f16 with the device's own type. */
  readonly f16: boolean;
}

/** Conversions of 16-bit floats by their bits: exact, subnormals and NaN included, whatever the device flushes. */
const CONVERSIONS: Readonly<Record<Exclude<FloatDType, "f32">, string>> = {
  bf16: `
fn decode(bits: u32) -> f32 { return bitcast<f32>(bits << 16u); }
fn encode(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
  return select(rounded, (bits >> 16u) | 0x40u, (bits & 0x7fffffffu) > 0x7f800000u);
}`,
  f16: `
fn decode(bits: u32) -> f32 {
  let sign = (bits & 0x8000u) << 16u;
  let magnitude = bits & 0x7fffu;
  let normal = (magnitude << 13u) + select(0x38000000u, 0x70000000u, magnitude >= 0x7c00u);
  let subnormal = bitcast<u32>(f32(magnitude) * 5.9604644775390625e-8);
  return bitcast<f32>(sign | select(normal, subnormal, magnitude < 0x400u));
}
fn encode(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  let sign = (bits >> 16u) & 0x8000u;
  let magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) { return sign | 0x7e00u | ((magnitude >> 13u) & 0x3ffu); }
  if (magnitude >= 0x477ff000u) { return sign | 0x7c00u; }
  if (magnitude >= 0x38800000u) {
    return sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u);
  }
  if (magnitude < 0x33000000u) { return sign; }
  let significand = (magnitude & 0x7fffffu) | 0x800000u;
  let shift = 126u - (magnitude >> 23u);
  let whole = significand >> shift;
  let rest = significand & ((1u << shift) - 1u);
  let half = 1u << (shift - 1u);
  return sign | (whole + select(0u, 1u, rest > half || (rest == half && (whole & 1u) == 1u)));
}`,
};

/**
 * Functions that keep NaN, as the device's own need not. NaN is known by its bits: compilers may assume that `x == x`. The argument of
 * a logarithm is a sum of probabilities.
 */
const NAN_KEEPING = `
fn isNan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }
fn isNan4(x: vec4<f32>) -> vec4<bool> {
  return (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}
fn exp2Of(x: f32) -> f32 { return select(exp2(x), x, isNan(x)); }
fn exp2Of4(x: vec4<f32>) -> vec4<f32> { return select(exp2(x), x, isNan4(x)); }
fn log2Of(x: f32) -> f32 { return select(log2(x), x, isNan(x)); }`;

const conversions = (dtype: DType): string =>
  dtype === "f16" || dtype === "bf16"
    ? CONVERSIONS[dtype].replaceAll(/\b(decode|encode)\b/g, `$1_${dtype}`)
    : "";

/** A module-scope buffer and the functions that read and write it. */
function declareBuffer(name: string, index: number, binding: Binding, spec: Specialization): string {
  const access = binding.access === "read" ? "read" : "read_write";
  const declare = (type: string) =>
    `@group(0) @binding(${index}) var<storage, ${access}> ${name}: array<${type}>;\n`;
  const dtype = spec.dtypes[name];
  const packed = dtype === "f16" || dtype === "bf16";
  // The device's own conversion to f16 may round as it likes, so written tensors keep theirs.
  const native = dtype === "f16" && spec.f16 && binding.access === "read";
  const from = `p.${name}_from`;
  const quad = native
    ? `vec4<f32>(${name}[at])`
    : packed
      ? `vec4<f32>(decode_${dtype}(${name}[at].x & 0xffffu), decode_${dtype}(${name}[at].x >> 16u), ` +
        `decode_${dtype}(${name}[at].y & 0xffffu), decode_${dtype}(${name}[at].y >> 16u))`
      : `${name}[at]`;
  const quadType = native ? "vec4<f16>" : packed ? "vec2<u32>" : "vec4<f32>";
  const element = native
    ? `f32(${name}[at])`
    : packed
      ? `decode_${dtype}((${name}[at >> 1u] >> (16u * (at & 1u))) & 0xffffu)`
      : `${name}[at]`;
  const elementType = native ? "f16" : packed ? "u32" : "f32";
  const at = `fn ${name}_at(i: u32) -> f32 { let at = i - ${from}; return ${element}; }\n`;
  switch (binding.element) {
    case "quads": {
      const get = `fn ${name}_quad(i: u32) -> vec4<f32> { let at = i - ${from}; return ${quad}; }\n`;
      const stored = packed
        ? `vec2<u32>(encode_${dtype}(value.x) | (encode_${dtype}(value.y) << 16u), encode_${dtype}(value.z) | (encode_${dtype}(value.w) << 16u))`
        : "value";
      const set = `fn ${name}_set(i: u32, value: vec4<f32>) { ${name}[i - ${from}] = ${stored}; }\n`;
      return declare(quadType) + get + (binding.access === "write" ? set : "");
    }
    case "rows": {
      if (binding.access === "write") {
        const assign = (operator: string) =>
          spec.vector
            ? `if (c < p.d) { ${name}[(begin + c - ${from}) >> 2u] ${operator} value; }`
            : `for (var e = 0u; e < 4u && c + e < p.d; e++) { ${name}[begin + c + e - ${from}] ${operator} value[e]; }`;
        const define = (suffix: string, operator: string) =>
          `fn ${name}_${suffix}(begin: u32, c: u32, value: vec4<f32>) { ${assign(operator)} }\n`;
        return declare(spec.vector ? "vec4<f32>" : "f32") + define("put", "=") + define("add", "+=");
      }
      if (spec.vector) {
        return `${declare(quadType)}fn ${name}_row(begin: u32, c: u32) -> vec4<f32> {
  let at = (begin + min(c, p.d - 4u) - ${from}) >> 2u;
  return select(vec4<f32>(), ${quad}, c < p.d);
}\n`;
      }
      return `${declare(elementType)}${at}fn ${name}_row(begin: u32, c: u32) -> vec4<f32> {
  var row = vec4<f32>();
  for (var e = 0u; e < 4u && c + e < p.d; e++) { row[e] = ${name}_at(begin + c + e); }
  return row;
}\n`;
    }
    case "elements":
      return declare(elementType) + at;
    default:
      return declare(binding.element);
  }
}

const ITEM_BYTES = {
  f32: 4,
  u32: 4,
  i32: 4,
  "vec2<f32>": 8,
  "vec4<f32>": 16,
  "vec4<u32>": 16,
};

/** How many of what `x_from` counts lie before an element of a dtype. */
export function countedBefore(element: Element, dtype: DType, origin: number): number {
  if (element === "quads") return origin / 4;
  if (element === "rows" || element === "elements") return origin;
  return (origin * bytesPerElement(dtype)) / ITEM_BYTES[element];
}

const constant = (value: number | boolean): string =>
  typeof value === "boolean" ? `bool = ${value}` : `u32 = ${value}u`;

/** The head of a loop to unroll, up to its body. */
const UNROLLED = /@unroll for \(var (\w+) = 0u; \1 < ([^;]+); \1\+\+\) \{/;

/** Turns of a loop that is written out, at most, and of one around another: compilers take very long for more. */
const MOST_TURNS = 8;
const MOST_OUTER_TURNS = 4;

/** A product of constants and numbers, as it stands in the head of a loop to unroll. */
const turnsOf = (bound: string, constants: Specialization["constants"]): number =>
  bound
    .split("*")
    .map((factor) => constants[factor.trim()] ?? Number.parseInt(factor, 10))
    .reduce<number>((product, factor) => product * Number(factor), 1);

/**
 * Writes loops marked `@unroll` out, their counter a constant in each turn: compilers keep an array in registers only if every index is
 * known to them. Those of many turns stay loops. The head is `@unroll for (var i = 0u; i < BOUND; i++) {`, the bound a product of the kernel's constants and numbers; no
 * `break` or `continue` inside belongs to it.
 * @throws Error for a bound that is not known, or a body that does not end
 */
export function unroll(source: string, constants: Specialization["constants"]): string {
  const head = UNROLLED.exec(source);
  if (!head) return source;
  const [{ length }, counter, bound] = head;
  const begin = head.index + length;
  let end = begin;
  for (let depth = 1; depth > 0; end++) {
    if (end === source.length) throw new Error(`a loop over ${counter} does not end`);
    depth += source[end] === "{" ? 1 : source[end] === "}" ? -1 : 0;
  }
  const turns = turnsOf(bound, constants);
  if (!Number.isInteger(turns)) throw new Error(`${bound} is not known`);
  const inner = source.slice(begin, end - 1);
  const body = unroll(inner, constants);
  const loop =
    turns > (UNROLLED.test(inner) ? MOST_OUTER_TURNS : MOST_TURNS)
      ? `${head[0].slice("@unroll ".length)}${body}}`
      : Array.from({ length: turns }, (_, i) => `{ const ${counter} = ${i}u;${body}}`).join("\n");
  return source.slice(0, head.index) + loop + unroll(source.slice(end), constants);
}

/** Subgroups take different matrices in turn: the compiler cannot see that the threads of each go the same way. */
const MATRIX_DIRECTIVES = [
  "enable f16;",
  "enable chromium_experimental_subgroup_matrix;",
  "diagnostic(off, chromium.subgroup_matrix_uniformity);",
];

/** The text of a library file and of a kernel, with the declarations that they rely on: a complete WGSL module. */
export function assemble({ source, bindings, params }: Kernel, spec: Specialization): string {
  const enable = [
    ...(spec.constants.SUBGROUPS ? ["enable subgroups;"] : []),
    ...(spec.constants.MATRICES ? MATRIX_DIRECTIVES : spec.f16 ? ["enable f16;"] : []),
  ];
  const dtypes = [...new Set(Object.values(spec.dtypes))];
  const fields = [
    ...Object.keys(bindings).map((name) => `  ${name}_from: u32,`),
    ...Object.entries(params).map(([name, type]) => `  ${name}: ${type},`),
  ];
  return [
    ...enable,
    ...Object.entries(spec.constants).map(([name, value]) => `const ${name}: ${constant(value)};`),
    `struct Params {\n  /* the launch: workgroups in all, and in a row of the grid */\n  groups: u32,\n  gridWidth: u32,\n${fields.join("\n")}\n}`,
    "@group(1) @binding(0) var<uniform> p: Params;",
    "fn group_index(id: vec3<u32>) -> u32 { return id.x + id.y * p.gridWidth; }",
    NAN_KEEPING,
    ...dtypes.map(conversions),
    ...Object.entries(bindings).map(([name, binding], index) => declareBuffer(name, index, binding, spec)),
    unroll(source.replaceAll(/\/\/.*/g, ""), spec.constants),
  ].join("\n");
}

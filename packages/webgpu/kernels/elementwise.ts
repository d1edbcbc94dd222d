import type { FloatDType, Tensor } from "@moba-js/tensor";
import { type Argument, type Piece, rowRanges, rowsOf } from "../src/commands.js";
import type { Context } from "../src/context.js";
import { type Kernel, kernel, read, type ScalarType, write } from "../src/kernel.js";
import addSource from "./add.wgsl";
import castSource from "./cast.wgsl";
import mainSource from "./elementwise.wgsl";
import siluSource from "./silu.wgsl";
import swigluSource from "./swiglu.wgsl";
import swigluBackwardSource from "./swiglu-backward.wgsl";

/** Parameters of a kernel that runs over elements. */
export const RANGE = { firstQuad: "u32", endQuad: "u32" } as const satisfies Record<string, ScalarType>;

const ADD = kernel({
  name: "add",
  source: addSource + mainSource,
  bindings: { a: read("quads"), b: read("quads"), out: write("quads") },
  params: RANGE,
});

const CAST = kernel({
  name: "cast",
  source: castSource + mainSource,
  bindings: { x: read("quads"), out: write("quads") },
  params: RANGE,
});

const SWIGLU = kernel({
  name: "swiglu",
  source: siluSource + swigluSource + mainSource,
  bindings: { gate: read("quads"), up: read("quads"), out: write("quads") },
  params: RANGE,
});

const SWIGLU_BACKWARD = kernel({
  name: "swiglu-backward",
  source: siluSource + swigluBackwardSource + mainSource,
  bindings: {
    dOut: read("quads"),
    gate: read("quads"),
    up: read("quads"),
    dGate: write("quads"),
    dUp: write("quads"),
  },
  params: RANGE,
});

/** Launches an elementwise kernel over `size` elements. */
export function overElements<B extends string, P extends string>(
  { commands }: Context,
  definition: Kernel<B, P>,
  size: number,
  buffers: Readonly<Record<B, Argument>>,
  params: Readonly<Record<Exclude<P, "firstQuad" | "endQuad">, number>>,
  constants: Readonly<Record<string, number | boolean>> = {},
): void {
  const quads = Math.ceil(size / 4);
  const all = { ...params, firstQuad: 0, endQuad: quads } as Record<P, number>;
  commands.launch(definition, { buffers, params: all, constants, groups: Math.ceil(quads / 64) });
}

/** The same for a kernel that reads no element but those it writes: in pieces, if the tensors are larger than can be bound. */
function piecewise<B extends string, P extends string>(
  context: Context,
  definition: Kernel<B, P>,
  size: number,
  buffers: Readonly<Record<B, Tensor | Piece>>,
  params: Readonly<Record<Exclude<P, "firstQuad" | "endQuad">, number>>,
): void {
  const names = Object.keys(buffers) as B[];
  for (const { first, count } of rowRanges(Math.ceil(size / 4), 16, context.commands.bindingLimit)) {
    const pieces = names.map((name) => [name, rowsOf(buffers[name], 4, first, count)] as const);
    overElements(context, definition, 4 * count, Object.fromEntries(pieces) as Record<B, Piece>, params);
  }
}

/** `out = a + b`. */
export const add = (context: Context, a: Tensor, b: Tensor, out: Tensor): void =>
  piecewise(context, ADD, out.size, { a, b, out }, {});

/** `out = x` in the dtype of `out`. */
export const cast = (context: Context, x: Tensor | Piece, out: Tensor | Piece, size: number): void =>
  piecewise(context, CAST, size, { x, out }, {});

/** `out = SiLU(gate) ⊙ up`. */
export const swiglu = (context: Context, gate: Tensor, up: Tensor, out: Tensor): void =>
  piecewise(context, SWIGLU, out.size, { gate, up, out }, {});

/** The gradients of {@link swiglu}. */
export const swigluBackward = (
  context: Context,
  { dOut, gate, up }: { dOut: Tensor; gate: Tensor; up: Tensor },
  { dGate, dUp }: { dGate: Tensor<FloatDType>; dUp: Tensor<FloatDType> },
): void => piecewise(context, SWIGLU_BACKWARD, gate.size, { dOut, gate, up, dGate, dUp }, {});

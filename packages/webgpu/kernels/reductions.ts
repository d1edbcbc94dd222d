import type { Tensor } from "@moba-js/tensor";
import type { Piece } from "../src/commands.js";
import type { Context } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import sumSource from "./sum.wgsl";
import sumPartsSource from "./sum-parts.wgsl";
import { mostRows, rangesOf, tokenWindow } from "./windows.js";

const SUM = kernel({
  name: "sum",
  source: sumSource,
  bindings: { x: read("quads"), out: write("f32") },
  params: { firstQuad: "u32", endQuad: "u32", size: "u32", place: "u32" },
});

const SUM_PARTS = kernel({
  name: "sum-parts",
  source: sumPartsSource,
  bindings: { parts: read("f32"), out: write("f32") },
  params: { size: "u32", parts: "u32" },
});

/** Partial sums of a large tensor, at most. */
const MOST_PARTS = 256;
const QUADS_PER_PART = 1024;

/** `out[place] = Σ x`, or `Σ x²`: in two steps, the second over the partial sums of the first. */
export function sum(context: Context, x: Tensor, out: Tensor | Piece, squares: boolean, place = 0): void {
  const { commands } = context;
  const quads = { first: 0, end: Math.ceil(x.size / 4) };
  const windows = quads.end === 0 ? [quads] : rangesOf(quads, mostRows(context, 16));
  const longest = windows[0].end;
  const parts = Math.max(1, Math.min(MOST_PARTS, Math.ceil(longest / QUADS_PER_PART)));
  const partial = commands.workspace(windows.length * parts);
  windows.forEach(({ first, end }, i) => {
    commands.launch(SUM, {
      buffers: { x: tokenWindow(x, 4, { first, end }), out: partial },
      params: { firstQuad: first, endQuad: end, size: x.size, place: i * parts },
      constants: { SQUARES: squares },
      groups: parts,
    });
  });
  const size = windows.length * parts;
  commands.launch(SUM, {
    buffers: { x: partial, out },
    params: { firstQuad: 0, endQuad: Math.ceil(size / 4), size, place },
    constants: { SQUARES: false },
    groups: 1,
  });
  partial.free();
}

/** `out_i = Σ parts[part][i]`: the sum of `count` parts of `size` elements, in their order. */
export function sumParts(
  { commands }: Context,
  parts: Piece,
  out: Tensor | Piece,
  size: number,
  count: number,
): void {
  const params = { size, parts: count };
  commands.launch(SUM_PARTS, { buffers: { parts, out }, params, groups: Math.ceil(size / 64) });
}

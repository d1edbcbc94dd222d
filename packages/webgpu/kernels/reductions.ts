import type { Tensor } from "@moba-js/tensor";
import type { Piece } from "../src/commands.js";
import type { Context } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import sumSource from "./sum.wgsl";
import sumPartsSource from "./sum-parts.wgsl";

const SUM = kernel({
  name: "sum",
  source: sumSource,
  bindings: { x: read("quads"), out: write("f32") },
  params: { quads: "u32", size: "u32", place: "u32" },
});

const SUM_PARTS = kernel({
  name: "sum-parts",
  source: sumPartsSource,
  bindings: { parts: read("f32"), out: write("f32") },
  params: { size: "u32", parts: "u32" },
});

/** Partial sums of a large tensor, at most. */
const MOST_PARTS = 256;
const ELEMENTS_PER_PART = 4096;

/** `out = Σ x`, or `Σ x²`: in two steps, the second over the partial sums of the first. */
export function sum({ commands }: Context, x: Tensor, out: Tensor, squares: boolean): void {
  const parts = Math.max(1, Math.min(MOST_PARTS, Math.ceil(x.size / ELEMENTS_PER_PART)));
  const step = (
    input: Tensor | Piece,
    size: number,
    output: Tensor | Piece,
    groups: number,
    SQUARES: boolean,
  ) =>
    commands.launch(SUM, {
      buffers: { x: input, out: output },
      params: { quads: Math.ceil(size / 4), size, place: 0 },
      constants: { SQUARES },
      groups,
    });
  const partial = commands.workspace(parts);
  step(x, x.size, partial, parts, squares);
  step(partial, parts, out, 1, false);
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

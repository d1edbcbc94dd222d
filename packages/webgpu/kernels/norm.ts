import type { FloatDType, RmsNormProblem, Tensor } from "@moba-js/tensor";
import { type Piece, rowRanges, rowsOf } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import { sumParts } from "./reductions.js";
import normSource from "./rms-norm.wgsl";
import backwardSource from "./rms-norm-backward.wgsl";
import weightSource from "./rms-norm-weight.wgsl";
import rowsSource from "./rows.wgsl";
import { mostRows, rangesOf, tokenWindow } from "./windows.js";

const NORM = kernel({
  name: "rms-norm",
  source: rowsSource + normSource,
  bindings: { x: read("rows"), weight: read("rows"), out: write("rows") },
  params: { d: "u32", epsilon: "f32" },
});

const BACKWARD = kernel({
  name: "rms-norm-backward",
  source: rowsSource + backwardSource,
  bindings: {
    dOut: read("rows"),
    x: read("rows"),
    weight: read("rows"),
    dx: write("rows"),
    inverses: write("f32"),
  },
  params: { d: "u32", epsilon: "f32" },
});

const WEIGHT = kernel({
  name: "rms-norm-weight",
  source: weightSource,
  bindings: { dOut: read("elements"), x: read("elements"), inverses: read("f32"), parts: write("f32") },
  params: { d: "u32", rows: "u32", firstPart: "u32", endPart: "u32", partRows: "u32" },
});

/** Rows that one thread adds up. */
const PART_ROWS = 64;

/** `out_t = w ⊙ x_t / r_t`. */
export function rmsNorm(
  context: Context,
  { x, weight, epsilon }: RmsNormProblem,
  out: Tensor<FloatDType>,
): void {
  const [rows, channels] = x.shape;
  if (out.size === 0) return;
  const { commands } = context;
  inFloat32(context, out, (wide) => {
    for (const { first, count } of rowRanges(rows, 4 * channels, commands.bindingLimit)) {
      commands.launch(NORM, {
        buffers: { x: rowsOf(x, channels, first, count), weight, out: rowsOf(wide, channels, first, count) },
        params: { d: channels, epsilon },
        vector: channels % 4 === 0,
        groups: count,
      });
    }
  });
}

/** The gradients of {@link rmsNorm}. */
export function rmsNormBackward(
  context: Context,
  { x, weight, epsilon, dOut }: RmsNormProblem & { dOut: Tensor<FloatDType> },
  { dx, dWeight }: { dx: Tensor<FloatDType>; dWeight: Tensor<FloatDType> },
): void {
  const { commands } = context;
  const [rows, channels] = x.shape;
  if (channels === 0) return;
  const inverses = commands.workspace(rows);
  inFloat32(context, dx, (wide) => {
    for (const { first, count } of rowRanges(rows, 4 * channels, commands.bindingLimit)) {
      const piece = (tensor: Tensor | Piece) => rowsOf(tensor, channels, first, count);
      commands.launch(BACKWARD, {
        buffers: {
          ...{ dOut: piece(dOut), x: piece(x), weight, dx: piece(wide) },
          inverses: rowsOf(inverses, 1, first, count),
        },
        params: { d: channels, epsilon },
        vector: channels % 4 === 0,
        groups: count,
      });
    }
  });
  const most = mostRows(context, 4 * channels);
  const partRows = Math.max(PART_ROWS, Math.ceil(rows / most));
  const parts = Math.max(1, Math.ceil(rows / partRows));
  const partial = commands.workspace(parts * channels);
  for (const { first, end } of rangesOf({ first: 0, end: parts }, Math.max(1, Math.floor(most / partRows)))) {
    const range = { first: first * partRows, end: Math.min(rows, end * partRows) };
    commands.launch(WEIGHT, {
      buffers: {
        dOut: tokenWindow(dOut, channels, range),
        x: tokenWindow(x, channels, range),
        inverses: tokenWindow(inverses, 1, range),
        parts: partial,
      },
      params: { d: channels, rows, firstPart: first, endPart: end, partRows },
      groups: Math.ceil(((end - first) * channels) / 64),
    });
  }
  inFloat32(context, dWeight, (wide) => sumParts(context, partial, wide, channels, parts));
  partial.free();
  inverses.free();
}

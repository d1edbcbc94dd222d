import type { FloatDType, RmsNormProblem, Tensor } from "@moba-js/tensor";
import { rowRanges, rowsOf } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import { sumParts } from "./reductions.js";
import normSource from "./rms-norm.wgsl";
import backwardSource from "./rms-norm-backward.wgsl";
import weightSource from "./rms-norm-weight.wgsl";
import rowsSource from "./rows.wgsl";

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
  params: { d: "u32", rows: "u32", parts: "u32", partRows: "u32" },
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
  inFloat32(context, dx, (wide) =>
    commands.launch(BACKWARD, {
      buffers: { dOut, x, weight, dx: wide, inverses },
      params: { d: channels, epsilon },
      vector: channels % 4 === 0,
      groups: rows,
    }),
  );
  const parts = Math.max(1, Math.ceil(rows / PART_ROWS));
  const partial = commands.workspace(parts * channels);
  commands.launch(WEIGHT, {
    buffers: { dOut, x, inverses, parts: partial },
    params: { d: channels, rows, parts, partRows: PART_ROWS },
    groups: Math.ceil((parts * channels) / 64),
  });
  inFloat32(context, dWeight, (wide) => sumParts(context, partial, wide, channels, parts));
  partial.free();
  inverses.free();
}

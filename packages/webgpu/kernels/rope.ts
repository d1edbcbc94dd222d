import type { FloatDType, RopeProblem, Tensor } from "@moba-js/tensor";
import { type Piece, rowRanges, rowsOf } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import source from "./rope.wgsl";

const ROPE = kernel({
  name: "rope",
  source,
  bindings: { x: read("elements"), positions: read("i32"), frequencies: read("u32"), out: write("f32") },
  params: { pairs: "u32", heads: "u32", d: "u32", inverse: "u32" },
});

/** Each pair's turns a position: a fraction of 32 bits, and the bits of the float32 that it leaves. */
function frequencyTable(headDim: number, base: number): Uint32Array {
  const table = new Uint32Array(headDim);
  const rests = new Float32Array(table.buffer);
  for (let pair = 0; pair < headDim / 2; pair++) {
    const turns = base ** ((-2 * pair) / headDim) / (2 * Math.PI);
    const fraction = Math.round(turns * 2 ** 32);
    table[2 * pair] = fraction;
    rests[2 * pair + 1] = turns - fraction / 2 ** 32;
  }
  return table;
}

/** Rotary position embedding. */
export function rope(context: Context, problem: RopeProblem, out: Tensor<FloatDType>): void {
  const { x, positions, base, inverse } = problem;
  const [, heads, headDim] = x.shape;
  const { commands } = context;
  const frequencies = frequencyTable(headDim, base);
  const width = heads * headDim;
  inFloat32(context, out, (wide) => {
    for (const { first, count } of rowRanges(x.shape[0], 4 * width, commands.bindingLimit)) {
      const pairs = (count * width) / 2;
      const rows = (tensor: Tensor | Piece, elements: number) => rowsOf(tensor, elements, first, count);
      commands.launch(ROPE, {
        buffers: { x: rows(x, width), positions: rows(positions, 1), frequencies, out: rows(wide, width) },
        params: { pairs, heads, d: headDim, inverse: inverse ? 1 : 0 },
        groups: Math.ceil(pairs / 64),
      });
    }
  });
}

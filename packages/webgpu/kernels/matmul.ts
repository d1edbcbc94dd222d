import type { FloatDType, MatmulProblem, Tensor } from "@moba-js/tensor";
import { rowRanges, rowsOf } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import source from "./matmul.wgsl";

const MATMUL = kernel({
  name: "matmul",
  source,
  bindings: { a: read("elements"), b: read("elements"), out: write("f32") },
  params: { rows: "u32", columns: "u32", inner: "u32", firstRow: "u32", allRows: "u32" },
});

const SIDE = 64;

/** `out = A · B`. */
export function matmul(context: Context, problem: MatmulProblem, out: Tensor<FloatDType>): void {
  const { a, b, rows, columns, inner, transposeA, transposeB } = problem;
  const { commands } = context;
  const rowBytes = 4 * Math.max(columns, transposeA ? 0 : inner);
  inFloat32(context, out, (wide) => {
    for (const { first, count } of rowRanges(rows, rowBytes, commands.bindingLimit)) {
      const isWhole = count === rows;
      commands.launch(MATMUL, {
        buffers: {
          // Of a transposed factor, the rows of the product are columns.
          a: isWhole || transposeA ? a : rowsOf(a, inner, first, count),
          b,
          out: isWhole ? wide : rowsOf(wide, columns, first, count),
        },
        params: { rows: count, columns, inner, firstRow: transposeA ? first : 0, allRows: rows },
        constants: { TRANSPOSE_A: transposeA, TRANSPOSE_B: transposeB },
        groups: Math.ceil(count / SIDE) * Math.ceil(columns / SIDE),
      });
    }
  });
}

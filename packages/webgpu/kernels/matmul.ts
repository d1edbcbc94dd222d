import type { FloatDType, MatmulProblem, Tensor } from "@moba-js/tensor";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import source from "./matmul.wgsl";
import { mostRows, rangesOf, tokenWindow } from "./windows.js";

const MATMUL = kernel({
  name: "matmul",
  source,
  bindings: { a: read("elements"), b: read("elements"), out: write("f32") },
  params: {
    ...({ rows: "u32", columns: "u32", inner: "u32", firstRow: "u32", endRow: "u32" } as const),
    ...({ firstColumn: "u32", endColumn: "u32", firstInner: "u32", endInner: "u32" } as const),
  },
});

const SIDE = 64;

/** `out = A · B`; by parts of each extent where a matrix cannot be bound at once. */
export function matmul(context: Context, problem: MatmulProblem, out: Tensor<FloatDType>): void {
  const { a, b, rows, columns, inner, transposeA, transposeB } = problem;
  const { commands } = context;
  // Rows of `width` elements that can be bound, or all of them.
  const most = (count: number, width: number) =>
    4 * count * width <= commands.bindingLimit ? Math.max(1, count) : mostRows(context, 4 * width);
  const all = Number.POSITIVE_INFINITY;
  const mostOutput = Math.min(most(rows, columns), transposeA ? all : most(rows, inner));
  const mostColumns = transposeB ? most(columns, inner) : all;
  const mostInner = Math.min(transposeA ? most(inner, rows) : all, transposeB ? all : most(inner, columns));
  const parts = (end: number, step: number) => rangesOf({ first: 0, end }, Math.min(step, Math.max(1, end)));
  const inners = inner === 0 ? [{ first: 0, end: 0 }] : parts(inner, mostInner);
  inFloat32(context, out, (wide) => {
    for (const m of parts(rows, mostOutput)) {
      for (const n of parts(columns, mostColumns)) {
        for (const k of inners) {
          commands.launch(MATMUL, {
            buffers: {
              a: transposeA ? tokenWindow(a, rows, k) : tokenWindow(a, inner, m),
              b: transposeB ? tokenWindow(b, inner, n) : tokenWindow(b, columns, k),
              out: tokenWindow(wide, columns, m),
            },
            params: {
              ...{ rows, columns, inner, firstRow: m.first, endRow: m.end, firstColumn: n.first },
              ...{ endColumn: n.end, firstInner: k.first, endInner: k.end },
            },
            constants: { TRANSPOSE_A: transposeA, TRANSPOSE_B: transposeB },
            groups: Math.ceil((m.end - m.first) / SIDE) * Math.ceil((n.end - n.first) / SIDE),
          });
        }
      }
    }
  });
}

import type { FloatDType, Tensor } from "@moba-js/tensor";
import type { Argument } from "../src/commands.js";
import { type Context, inFloat32 } from "../src/context.js";
import { type Kernel, kernel, read, write } from "../src/kernel.js";
import embeddingSource from "./embedding.wgsl";
import backwardSource from "./embedding-backward.wgsl";
import gatherSource from "./gather.wgsl";
import { mostRows, type Range, rangesOf, tokenWindow } from "./windows.js";

/** Parameters of `gather.wgsl`. */
export const GATHER = { firstWord: "u32", endWord: "u32", adds: "u32" } as const;

const EMBEDDING = kernel({
  name: "embedding",
  source: embeddingSource + gatherSource,
  bindings: { table: read("u32"), indices: read("i32"), out: write("u32") },
  params: { ...GATHER, channels: "u32", tokens: "u32", firstRow: "u32", endRow: "u32" },
});

const BACKWARD = kernel({
  name: "embedding-backward",
  source: backwardSource,
  bindings: { dOut: read("elements"), indices: read("i32"), dTable: write("f32") },
  params: {
    ...({ channels: "u32", firstRow: "u32", accumulate: "u32", firstToken: "u32", endToken: "u32" } as const),
  },
});

/** Launches a kernel that copies by bits, over elements `first … end − 1` of its output. */
export function gather<B extends string, P extends string>(
  { commands }: Context,
  definition: Kernel<B, P | keyof typeof GATHER>,
  { first, end }: Range,
  adds: boolean,
  buffers: Readonly<Record<B, Argument>>,
  params: Readonly<Record<P, number>>,
  constants: Readonly<Record<string, boolean>>,
): void {
  const perWord = constants.PACKED ? 2 : 1;
  const range = { firstWord: Math.floor(first / perWord), endWord: Math.ceil(end / perWord) };
  commands.launch(definition, {
    buffers,
    params: { ...params, ...range, adds: adds ? 1 : 0 } as Record<P | keyof typeof GATHER, number>,
    constants,
    groups: Math.ceil((range.endWord - range.firstWord) / 64),
  });
}

/** `out_t = table[indices_t]`. */
export function embedding(
  context: Context,
  { table, indices }: { table: Tensor<FloatDType>; indices: Tensor<"i32"> },
  out: Tensor<FloatDType>,
): void {
  const [rows, channels] = table.shape;
  const most = mostRows(context, 4 * channels);
  const constants = { PACKED: table.dtype !== "f32" };
  // Tokens in pairs, so that no word of a packed dtype belongs to two windows.
  for (const window of rangesOf({ first: 0, end: indices.size }, Math.max(2, most - (most % 2)))) {
    const tokens = tokenWindow(indices, 1, window);
    const output = tokenWindow(out, channels, window);
    const elements = { first: window.first * channels, end: window.end * channels };
    rangesOf({ first: 0, end: rows }, most).forEach(({ first, end }, i) => {
      const buffers = { table: tokenWindow(table, channels, { first, end }), indices: tokens, out: output };
      const params = { channels, tokens: window.end, firstRow: first, endRow: end };
      gather(context, EMBEDDING, elements, i > 0, buffers, params, constants);
    });
  }
}

/** The gradient of {@link embedding}. */
export function embeddingBackward(
  context: Context,
  { dOut, indices }: { dOut: Tensor<FloatDType>; indices: Tensor<"i32"> },
  dTable: Tensor<FloatDType>,
): void {
  const [rows, channels] = dTable.shape;
  const most = mostRows(context, 4 * channels);
  const windows = rangesOf({ first: 0, end: indices.size }, most);
  if (windows.length === 0) windows.push({ first: 0, end: 0 });
  inFloat32(context, dTable, (wide) => {
    for (const table of rangesOf({ first: 0, end: rows }, most)) {
      windows.forEach((tokens, i) => {
        context.commands.launch(BACKWARD, {
          buffers: {
            dOut: tokenWindow(dOut, channels, tokens),
            indices: tokenWindow(indices, 1, tokens),
            dTable: tokenWindow(wide, channels, table),
          },
          params: {
            ...{ channels, firstRow: table.first, accumulate: i > 0 ? 1 : 0 },
            ...{ firstToken: tokens.first, endToken: tokens.end },
          },
          groups: (table.end - table.first) * Math.ceil(channels / 64),
        });
      });
    }
  });
}

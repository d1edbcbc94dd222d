import type { FloatDType, Tensor } from "@moba-js/tensor";
import { type Context, inFloat32 } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import embeddingSource from "./embedding.wgsl";
import backwardSource from "./embedding-backward.wgsl";
import gatherSource from "./gather.wgsl";

const EMBEDDING = kernel({
  name: "embedding",
  source: embeddingSource + gatherSource,
  bindings: { table: read("u32"), indices: read("i32"), out: write("u32") },
  params: { words: "u32", channels: "u32", tokens: "u32", rows: "u32" },
});

const BACKWARD = kernel({
  name: "embedding-backward",
  source: backwardSource,
  bindings: { dOut: read("elements"), indices: read("i32"), dTable: write("f32") },
  params: { channels: "u32", tokens: "u32" },
});

/** Words that hold so many elements. */
export const wordsOf = (size: number, packed: boolean): number => (packed ? Math.ceil(size / 2) : size);

/** `out_t = table[indices_t]`. */
export function embedding(
  { commands }: Context,
  { table, indices }: { table: Tensor<FloatDType>; indices: Tensor<"i32"> },
  out: Tensor<FloatDType>,
): void {
  const [rows, channels] = table.shape;
  const PACKED = table.dtype !== "f32";
  const words = wordsOf(out.size, PACKED);
  commands.launch(EMBEDDING, {
    buffers: { table, indices, out },
    params: { words, channels, tokens: indices.size, rows },
    constants: { PACKED },
    groups: Math.ceil(words / 64),
  });
}

/** The gradient of {@link embedding}. */
export function embeddingBackward(
  context: Context,
  { dOut, indices }: { dOut: Tensor<FloatDType>; indices: Tensor<"i32"> },
  dTable: Tensor<FloatDType>,
): void {
  const [rows, channels] = dTable.shape;
  inFloat32(context, dTable, (wide) =>
    context.commands.launch(BACKWARD, {
      buffers: { dOut, indices, dTable: wide },
      params: { channels, tokens: indices.size },
      groups: rows * Math.ceil(channels / 64),
    }),
  );
}

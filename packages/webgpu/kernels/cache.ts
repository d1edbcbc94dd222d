import type { CopyRowsProblem, UpdateCentroidsProblem } from "@moba-js/tensor";
import type { Context } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import copySource from "./copy-rows.wgsl";
import updateSource from "./update-centroids.wgsl";

const COPY_ROWS = kernel({
  name: "copy-rows",
  source: copySource,
  bindings: { x: read("u32"), out: write("u32") },
  params: { first: "u32", last: "u32", source: "u32" },
});

const UPDATE_CENTROIDS = kernel({
  name: "update-centroids",
  source: updateSource,
  bindings: { k: read("elements"), blocks: read("vec4<u32>"), centroids: write("f32") },
  params: { size: "u32", channels: "u32" },
});

/** Copies each sequence's rows into the target. */
export function copyRows({ commands }: Context, problem: CopyRowsProblem): void {
  const { target, source, cuSeqlens, offsets } = problem;
  const channels = target.shape[1] * target.shape[2];
  const PACKED = target.dtype !== "f32";
  offsets.forEach((offset, s) => {
    const first = offset * channels;
    const size = (cuSeqlens[s + 1] - cuSeqlens[s]) * channels;
    const words = size === 0 ? 0 : PACKED ? Math.ceil((first + size) / 2) - Math.floor(first / 2) : size;
    commands.launch(COPY_ROWS, {
      buffers: { x: source, out: target },
      params: { first, last: first + size, source: cuSeqlens[s] * channels },
      constants: { PACKED },
      groups: Math.ceil(words / 64),
    });
  });
}

/** The blocks that new keys fall into, in order: (first new key token, its place in the block, new keys, centroid). */
function touchedBlocks({ cuSeqlens, cuCentroids, offsets, blockSize }: UpdateCentroidsProblem): Uint32Array {
  const blocks: number[] = [];
  offsets.forEach((offset, s) => {
    const end = offset + cuSeqlens[s + 1] - cuSeqlens[s];
    for (let t = offset; t < end; ) {
      const block = Math.floor(t / blockSize);
      const next = Math.min(end, (block + 1) * blockSize);
      blocks.push(cuSeqlens[s] + t - offset, t % blockSize, next - t, cuCentroids[s] + block);
      t = next;
    }
  });
  return Uint32Array.from(blocks);
}

/** Takes new keys into running block means. */
export function updateCentroids({ commands }: Context, problem: UpdateCentroidsProblem): void {
  const { centroids, k } = problem;
  const channels = centroids.shape[1] * centroids.shape[2];
  const blocks = touchedBlocks(problem);
  const size = (blocks.length / 4) * channels;
  commands.launch(UPDATE_CENTROIDS, {
    buffers: { k, blocks, centroids },
    params: { size, channels },
    groups: Math.ceil(size / 64),
  });
}

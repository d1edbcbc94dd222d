import type { CopyRowsProblem, UpdateCentroidsProblem } from "@moba-js/tensor";
import { windowOf } from "../src/commands.js";
import type { Context } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import copySource from "./copy-rows.wgsl";
import updateSource from "./update-centroids.wgsl";
import { mostRows, rangesOf, tokenWindow } from "./windows.js";

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
export function copyRows(context: Context, problem: CopyRowsProblem): void {
  const { target, source, cuSeqlens, offsets } = problem;
  const channels = target.shape[1] * target.shape[2];
  const PACKED = target.dtype !== "f32";
  const most = mostRows(context, 4 * channels);
  offsets.forEach((offset, s) => {
    for (const rows of rangesOf({ first: cuSeqlens[s], end: cuSeqlens[s + 1] }, most)) {
      const place = rows.first - cuSeqlens[s] + offset;
      const first = place * channels;
      const last = first + (rows.end - rows.first) * channels;
      const words = PACKED ? Math.ceil(last / 2) - Math.floor(first / 2) : last - first;
      context.commands.launch(COPY_ROWS, {
        buffers: { x: tokenWindow(source, channels, rows), out: windowOf(target, first, last) },
        params: { first, last, source: rows.first * channels },
        constants: { PACKED },
        groups: Math.ceil(words / 64),
      });
    }
  });
}

/** New keys of one block: `count` from key token `first` on, `place` of the block's keys before them. */
interface NewKeys {
  readonly first: number;
  readonly place: number;
  readonly count: number;
  readonly centroid: number;
}

/** The new keys of each block, in order, at most so many together. */
function newKeysOf(
  { cuSeqlens, cuCentroids, offsets, blockSize }: UpdateCentroidsProblem,
  most: number,
): NewKeys[] {
  const runs: NewKeys[] = [];
  offsets.forEach((offset, s) => {
    const end = offset + cuSeqlens[s + 1] - cuSeqlens[s];
    for (let t = offset; t < end; ) {
      const block = Math.floor(t / blockSize);
      const count = Math.min(end, (block + 1) * blockSize, t + most) - t;
      runs.push({
        first: cuSeqlens[s] + t - offset,
        place: t % blockSize,
        count,
        centroid: cuCentroids[s] + block,
      });
      t += count;
    }
  });
  return runs;
}

/** Takes new keys into running block means. */
export function updateCentroids(context: Context, problem: UpdateCentroidsProblem): void {
  const { centroids, k } = problem;
  const channels = centroids.shape[1] * centroids.shape[2];
  const most = mostRows(context, 4 * channels);
  const runs = newKeysOf(problem, most);
  for (let begin = 0; begin < runs.length; ) {
    const { first, centroid } = runs[begin];
    let end = begin + 1;
    const fits = (run: NewKeys) =>
      run.first + run.count - first <= most &&
      run.centroid - centroid < most &&
      run.centroid !== runs[end - 1].centroid;
    while (end < runs.length && fits(runs[end])) end += 1;
    const last = runs[end - 1];
    const size = (end - begin) * channels;
    context.commands.launch(UPDATE_CENTROIDS, {
      buffers: {
        k: tokenWindow(k, channels, { first, end: last.first + last.count }),
        blocks: Uint32Array.from(
          runs.slice(begin, end).flatMap((run) => [run.first, run.place, run.count, run.centroid]),
        ),
        centroids: tokenWindow(centroids, channels, { first: centroid, end: last.centroid + 1 }),
      },
      params: { size, channels },
      groups: Math.ceil(size / 64),
    });
    begin = end;
  }
}

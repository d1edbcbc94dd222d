import { centroids, updateCentroids } from "@moba-js/reference";
import { cuSeqlensFromLengths, type DecodingOperation } from "@moba-js/tensor";
import { ATTENTION_CASES, attentionTensors, describeCase, drawProblem } from "./cases.js";
import type { Check, Subject } from "./check.js";
import { F32_BOUND } from "./compare.js";
import { judgeRouting } from "./judge-routing.js";
import { checksFor, copyOf } from "./neural.js";
import { runTrial } from "./trial.js";

/** Sequences in a cache, and what is new. */
interface CacheCase {
  /** Keys that each sequence has before, and new ones. */
  readonly before: readonly number[];
  readonly added: readonly number[];
  readonly kvHeads: number;
  readonly headDim: number;
  readonly blockSize: number;
  /** Blocks that each sequence has room for. */
  readonly room: number;
}

const CASES: Readonly<Record<string, CacheCase>> = {
  "one token": { before: [13], added: [1], kvHeads: 1, headDim: 4, blockSize: 4, room: 5 },
  "the first tokens": { before: [0, 0], added: [3, 9], kvHeads: 2, headDim: 5, blockSize: 4, room: 3 },
  "some pause": { before: [7, 20, 1], added: [1, 0, 1], kvHeads: 2, headDim: 8, blockSize: 8, room: 4 },
  "a chunk over several blocks": {
    before: [5],
    added: [70],
    kvHeads: 1,
    headDim: 33,
    blockSize: 16,
    room: 6,
  },
  "B = 1": { before: [3, 4], added: [2, 1], kvHeads: 2, headDim: 8, blockSize: 1, room: 9 },
  "up to the end": { before: [30], added: [34], kvHeads: 2, headDim: 16, blockSize: 32, room: 2 },
};

/** `routeCentroids` on the oracle's centroids, judged as `route` is. */
function routeCentroidChecks(subject: Subject): Check[] {
  const cases = ATTENTION_CASES.filter(({ causal, randomRouting }) => causal !== false && !randomRouting);
  return cases.map((shape) => ({
    title: describeCase(shape),
    needs: ["routeCentroids"],
    run: () => {
      const problem = drawProblem(shape, subject);
      const { cuSeqlens, cuSeqlensK, blockSize, topK, kvHeads, headDim } = problem;
      const values = centroids({ ...problem, cuSeqlens: cuSeqlensK }).map(Math.fround);
      const means = {
        values,
        shape: [values.length / (kvHeads * headDim), kvHeads, headDim],
        dtype: "f32" as const,
      };
      const { q } = attentionTensors(problem);
      return runTrial(subject.backend, {
        inputs: { q, means },
        run: (t) => {
          const options = { cuSeqlens, cuSeqlensK, blockSize, topK };
          return { indices: subject.backend.routeCentroids(t.q, t.means, options).indices };
        },
        judge: ({ indices }) => judgeRouting(problem, indices),
      });
    },
  }));
}

/** The checks of each operation on a cache. */
export const decodingChecks: Readonly<Record<DecodingOperation, (subject: Subject) => Check[]>> = {
  copyRows: checksFor(
    "copyRows",
    CASES,
    (subject, { before, added, kvHeads, headDim, blockSize, room }, draw) => {
      const capacity = room * blockSize;
      const cuSeqlens = cuSeqlensFromLengths(added);
      const width = kvHeads * headDim;
      const target = draw.floats([before.length * capacity, kvHeads, headDim]);
      const source = draw.floats([cuSeqlens[added.length], kvHeads, headDim]);
      const offsets = before.map((length, s) => s * capacity + length);
      const reference = target.values.slice();
      offsets.forEach((offset, s) => {
        reference.set(source.values.subarray(cuSeqlens[s] * width, cuSeqlens[s + 1] * width), offset * width);
      });
      return {
        inputs: { target, source },
        run: (t) => {
          const changed = copyOf(subject, t.target);
          subject.backend.copyRows(changed, t.source, { cuSeqlens, offsets });
          return { target: changed };
        },
        expected: { target: { shape: target.shape, dtype: subject.dtype, reference, bound: 0 } },
      };
    },
    ["cast"],
  ),
  updateCentroids: checksFor(
    "updateCentroids",
    CASES,
    (subject, { before, added, kvHeads, headDim, blockSize, room }, draw) => {
      const cuSeqlens = cuSeqlensFromLengths(added);
      const cuCentroids = cuSeqlensFromLengths(before.map(() => room));
      const means = draw.floats([before.length * room, kvHeads, headDim], "f32");
      const k = draw.floats([cuSeqlens[added.length], kvHeads, headDim]);
      const options = { cuSeqlens, cuCentroids, offsets: [...before], blockSize };
      const reference = means.values.slice();
      updateCentroids({ ...options, centroids: reference, k: k.values, channels: kvHeads * headDim });
      return {
        inputs: { means, k },
        run: (t) => {
          const changed = copyOf(subject, t.means);
          subject.backend.updateCentroids(changed, t.k, options);
          return { means: changed };
        },
        expected: { means: { shape: means.shape, dtype: "f32", reference, bound: F32_BOUND } },
      };
    },
    ["cast"],
  ),
  routeCentroids: routeCentroidChecks,
};

import type { AttentionBackwardProblem, AttentionGradients } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { queryRanges } from "../route/ranges.js";
import { computeRowTerms } from "./row_terms.js";
import { MOST_KEYS } from "./slot_backward.js";
import { keyTile, keyTileBytes } from "./sm80_attend_backward.js";

/** As in sm80_dense_query_gradients.cu: queries of a CTA, and keys of a chunk. */
const [QUERIES, CHUNK] = [128, 64];
const THREADS = 256;

/**
 * Gradients of dense attention on tensor cores, where `gradientCores` says so. dk and dv of sequences without queries are left as
 * they are.
 * @param sight the keys that a query sees: at `t − window + 1 … t` when causal, else all
 */
export function sm80DenseBackward(
  device: Device,
  problem: AttentionBackwardProblem,
  sight: { readonly causal: boolean; readonly window: number },
  { dq, dk, dv }: AttentionGradients,
): void {
  const { q, dOut, k, v, dtype, tokens, heads, kvHeads, headDim, scale } = problem;
  const group = heads / kvHeads;
  using terms = device.scratch(8 * tokens * heads);
  computeRowTerms(device, problem, terms.pointer);
  const inputs = (ranges: number) =>
    new Arguments()
      .pointer(pointerOf(q))
      .pointer(pointerOf(dOut))
      .pointer(pointerOf(k))
      .pointer(pointerOf(v))
      .pointer(terms.pointer)
      .pointer(ranges);

  const sequences = queryRanges(device, problem, { causal: false, blockSize: MOST_KEYS, most: 2 ** 31 - 1 });
  const forKeys = inputs(sequences.table)
    .pointer(pointerOf(dk))
    .pointer(pointerOf(dv))
    .int(tokens)
    .int(heads)
    .int(group)
    .int(sequences.count)
    .int(Number(sight.causal))
    .int(sight.window)
    .float(scale)
    .bytes(new Uint8Array(0), 8);
  const keyShared = keyTileBytes(headDim, keyTile(headDim, MOST_KEYS));
  const keyKernel = device.kernel(
    "sm80_dense_key_gradients",
    `sm80_dense_key_gradients_${dtype}_d${headDim}`,
  );
  device.launch(keyKernel, [sequences.blocks, kvHeads, 1], THREADS, keyShared, forKeys);

  const ranges = queryRanges(device, problem, { causal: sight.causal, most: QUERIES });
  const forQueries = inputs(ranges.table)
    .pointer(pointerOf(dq))
    .int(tokens)
    .int(Number(sight.causal))
    .int(sight.window)
    .float(scale);
  const queryShared = 8 * CHUNK * headDim;
  const queryKernel = device.kernel(
    "sm80_dense_query_gradients",
    `sm80_dense_query_gradients_${dtype}_d${headDim}`,
  );
  device.launch(queryKernel, [ranges.count, group, kvHeads], THREADS, queryShared, forQueries);
}

import type { AttentionProblem, AttentionResult } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { attentionBytes, queriesAtOnce, scoreScale } from "../common/sm80.js";
import { queryRanges } from "../route/ranges.js";

/**
 * Dense attention on tensor cores, on any architecture that has them: where `tensorCores` says so.
 * @param sight the keys that a query sees: at `t − window + 1 … t` when causal, else all
 */
export function sm80Dense(
  device: Device,
  problem: AttentionProblem,
  { causal, window }: { readonly causal: boolean; readonly window: number },
  { out, lse }: AttentionResult,
): void {
  const { q, k, v, dtype, heads, kvHeads, headDim } = problem;
  const ranges = queryRanges(device, problem, { causal, most: queriesAtOnce(headDim) });
  const { scale, negate } = scoreScale(problem.scale);
  const args = new Arguments()
    .pointer(pointerOf(q))
    .pointer(pointerOf(k))
    .pointer(pointerOf(v))
    .pointer(pointerOf(out))
    .pointer(pointerOf(lse))
    .pointer(ranges.table)
    .int(Number(causal))
    .int(window)
    .float(scale)
    .int(Number(negate));
  const kernel = device.kernel("sm80_dense", `sm80_dense_${dtype}_d${headDim}`);
  device.launch(kernel, [ranges.count, heads / kvHeads, kvHeads], 128, attentionBytes(headDim), args);
}

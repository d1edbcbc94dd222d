import type { AttendProblem, AttentionResult } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { attentionBytes, queriesAtOnce, scoreScale } from "../common/sm80.js";
import { type AttendWave, slotAttend } from "./slot_attend.js";

/** CTAs of a multiprocessor: as many as registers allow. */
const RESIDENT = 2;

/** Routed attention on tensor cores, on any architecture that has them: where `tensorCores` says so and the routing has slots. */
export function sm80Attend(device: Device, problem: AttendProblem, outputs: AttentionResult): void {
  slotAttend(device, problem, outputs, {
    packed: false,
    mostRows: () => queriesAtOnce(problem.headDim),
    attend: (wave) => attend(device, problem, wave),
  });
}

function attend(device: Device, problem: AttendProblem, wave: AttendWave): void {
  const { q, k, v, dtype, heads, kvHeads, headDim, routing } = problem;
  const { lists, firstHead, begin, end, partial, notes } = wave;
  const { ranges } = lists;
  const { scale, negate } = scoreScale(problem.scale);
  const args = new Arguments()
    .pointer(pointerOf(q))
    .pointer(pointerOf(k))
    .pointer(pointerOf(v))
    .pointer(ranges.table)
    .pointer(lists.entries)
    .pointer(lists.items)
    .pointer(lists.phase)
    .pointer(partial)
    .pointer(notes)
    .long(kvHeads * headDim)
    .int(heads)
    .int(heads / kvHeads)
    .int(routing.indices.shape[2])
    .int(firstHead)
    .int(ranges.firstToken)
    .int(ranges.tokens)
    .int(ranges.count)
    .int(lists.mostItems)
    .int(begin * ranges.count)
    .int(end * ranges.count)
    .int(routing.blockSize)
    .int(Number(routing.causal))
    .float(scale)
    .int(Number(negate));
  const kernel = device.kernel("sm80_attend", `sm80_attend_${dtype}_d${headDim}`);
  device.launch(kernel, [RESIDENT * device.multiprocessors, 1, 1], 128, attentionBytes(headDim), args);
}

import type { CrossEntropyProblem, CrossEntropyResult, FloatDType, Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";

const THREADS = 256;
/** Columns that a CTA of the backward kernel takes. */
const COLUMNS = THREADS * 8;

/** `Backend.crossEntropy`. */
export function crossEntropy(
  device: Device,
  { logits, targets }: CrossEntropyProblem,
  { loss, lse }: CrossEntropyResult,
): void {
  const [tokens, columns] = logits.shape;
  const args = new Arguments()
    .pointer(pointerOf(logits))
    .pointer(pointerOf(targets))
    .pointer(pointerOf(loss))
    .pointer(pointerOf(lse))
    .int(columns);
  const kernel = device.kernel("cross_entropy", `cross_entropy_${logits.dtype}`);
  device.launch(kernel, [tokens, 1, 1], THREADS, 0, args);
}

/** `Backend.crossEntropyBackward`. */
export function crossEntropyBackward(
  device: Device,
  { logits, targets, dLoss, lse }: CrossEntropyProblem & { dLoss: Tensor<"f32">; lse: Tensor<"f32"> },
  dLogits: Tensor<FloatDType>,
): void {
  const [tokens, columns] = logits.shape;
  const args = new Arguments()
    .pointer(pointerOf(dLoss))
    .pointer(pointerOf(logits))
    .pointer(pointerOf(targets))
    .pointer(pointerOf(lse))
    .pointer(pointerOf(dLogits))
    .int(columns);
  const kernel = device.kernel("cross_entropy_backward", `cross_entropy_backward_${logits.dtype}`);
  device.launch(kernel, [tokens, ceilDiv(columns, COLUMNS), 1], THREADS, 0, args);
}

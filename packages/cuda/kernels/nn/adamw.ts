import type { AdamWProblem, AdamWProblemParameter } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";

/** As in adamw.cu. */
const [THREADS, NORM_THREADS, SHARE] = [256, 1024, 16384];

const GRADIENT_TYPES = { f32: 0, f16: 1, bf16: 2 } as const;

/** The parameters as the kernels read them, and the CTAs that take all of their elements. */
function tableOf(parameters: readonly AdamWProblemParameter[]): { table: Int32Array; ctas: number } {
  const rows = new Arguments();
  let ctas = 0;
  for (const { parameter, gradient, m, v, weightDecay } of parameters) {
    for (const tensor of [parameter, gradient, m, v]) rows.pointer(pointerOf(tensor));
    // The last is padding: a row is a multiple of 8 bytes.
    rows.long(parameter.size).float(weightDecay).int(ctas).int(GRADIENT_TYPES[gradient.dtype]).int(0);
    ctas += ceilDiv(parameter.size, SHARE);
  }
  const { buffer, byteOffset, byteLength } = rows.packed;
  return { table: new Int32Array(buffer, byteOffset, byteLength / 4), ctas };
}

/** `Backend.adamw`. */
export function adamw(device: Device, problem: AdamWProblem): void {
  const { parameters, beta1, beta2 } = problem;
  const [schedule, gradientNorm] = [pointerOf(problem.schedule), pointerOf(problem.gradientNorm)];
  const { table, ctas } = tableOf(parameters);
  const pointer = device.constant(table);
  using parts = device.scratch(4 * ctas);
  const file = "adamw";

  const squares = new Arguments().pointer(pointer).int(parameters.length).pointer(parts.pointer);
  device.launch(device.kernel(file, "adamw_squares"), [ctas, 1, 1], THREADS, 0, squares);
  const norm = new Arguments().pointer(parts.pointer).int(ctas).pointer(gradientNorm);
  device.launch(device.kernel(file, "adamw_norm"), [1, 1, 1], NORM_THREADS, 0, norm);
  const step = new Arguments()
    .pointer(pointer)
    .int(parameters.length)
    .pointer(schedule)
    .pointer(gradientNorm)
    .float(beta1)
    .float(1 - beta1)
    .float(Math.log(beta1))
    .float(beta2)
    .float(1 - beta2)
    .float(Math.log(beta2))
    .float(problem.epsilon)
    .float(problem.clipNorm);
  device.launch(device.kernel(file, "adamw"), [ctas, 1, 1], THREADS, 0, step);
}

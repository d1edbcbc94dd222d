import type { FloatDType, MatmulProblem, Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";

const THREADS = 256;
/** Rows and columns of a CTA's tile of the product. */
const TILE = 64;

/** `Backend.matmul`, on the float32 units. */
export function matmul(device: Device, problem: MatmulProblem, out: Tensor<FloatDType>): void {
  const { a, b, rows, columns, inner, transposeA, transposeB } = problem;
  const args = new Arguments()
    .pointer(pointerOf(a))
    .pointer(pointerOf(b))
    .pointer(pointerOf(out))
    .int(rows)
    .int(columns)
    .int(inner)
    .int(Number(transposeA))
    .int(Number(transposeB));
  const kernel = device.kernel("plain_matmul", `plain_matmul_${a.dtype}`);
  device.launch(kernel, [ceilDiv(rows, TILE) * ceilDiv(columns, TILE), 1, 1], THREADS, 0, args);
}

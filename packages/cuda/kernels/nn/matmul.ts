import type { FloatDType, MatmulProblem, Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { columnSums } from "./column_sums.js";

/** `Backend.matmul`. */
export function matmul(device: Device, problem: MatmulProblem, out: Tensor<FloatDType>): void {
  if (tensorCores(device, problem)) sm80Matmul(device, problem, out);
  else plainMatmul(device, problem, out);
}

/** Whether the kernel for tensor cores is allowed and made for such factors: their rows are multiples of 16 bytes. */
const tensorCores = (device: Device, { a, b }: MatmulProblem): boolean =>
  device.path !== "plain" && a.dtype !== "f32" && a.shape[1] % 8 === 0 && b.shape[1] % 8 === 0;

/** As in plain_matmul.cu. */
const [PLAIN_THREADS, PLAIN_TILE] = [256, 64];

/** On the float32 units: any dtype and size. */
function plainMatmul(device: Device, problem: MatmulProblem, out: Tensor<FloatDType>): void {
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
  const grid = [ceilDiv(rows, PLAIN_TILE) * ceilDiv(columns, PLAIN_TILE), 1, 1] as const;
  device.launch(device.kernel("plain_matmul", `plain_matmul_${a.dtype}`), grid, PLAIN_THREADS, 0, args);
}

/** As in sm80_matmul.cu. */
const [THREADS, TILE, DEPTH, STAGES] = [256, 128, 32, 3];
const SHARED = STAGES * 2 * TILE * DEPTH * 2;
/** CTAs that a product is cut into where it has few tiles, and what of the summed extent a part has at least. */
const [WANTED, LEAST_PART] = [256, 512];

/** The parts that a product is cut into along the summed extent: a matter of its shape, so that results repeat. */
function partsOf({ rows, columns, inner }: MatmulProblem): { readonly part: number; readonly parts: number } {
  const tiles = ceilDiv(rows, TILE) * ceilDiv(columns, TILE);
  const most = Math.max(1, Math.min(Math.floor(WANTED / tiles), Math.floor(inner / LEAST_PART)));
  const part = Math.max(DEPTH, DEPTH * ceilDiv(ceilDiv(inner, most), DEPTH));
  return { part, parts: Math.max(1, ceilDiv(inner, part)) };
}

/** On tensor cores. */
function sm80Matmul(device: Device, problem: MatmulProblem, out: Tensor<FloatDType>): void {
  const { a, b, rows, columns, inner, transposeA, transposeB } = problem;
  if (out.size === 0) return;
  const { part, parts } = partsOf(problem);
  using sums = device.scratch(parts === 1 ? 0 : 4 * parts * out.size);
  const args = new Arguments()
    .pointer(pointerOf(a))
    .pointer(pointerOf(b))
    .pointer(pointerOf(out))
    .pointer(parts === 1 ? 0 : sums.pointer)
    .int(rows)
    .int(columns)
    .int(inner)
    .int(part);
  const transposed = `${transposeA ? "a" : ""}${transposeB ? "b" : ""}`;
  const kernel = device.kernel("sm80_matmul", `sm80_matmul_${a.dtype}${transposed && `_${transposed}`}`);
  const grid = [ceilDiv(rows, TILE) * ceilDiv(columns, TILE), parts, 1] as const;
  device.launch(kernel, grid, THREADS, SHARED, args);
  if (parts > 1) columnSums(device, sums.pointer, parts, out);
}

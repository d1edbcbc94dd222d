import type { FloatDType, MatmulProblem, Tensor } from "@moba-js/tensor";
import { Arguments, type Device, type ProductShape, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { columnSums } from "./column_sums.js";

/** `Backend.matmul`. */
export function matmul(device: Device, problem: MatmulProblem, out: Tensor<FloatDType>): void {
  product(device, shapeOf(problem, out), pointerOf(problem.a), pointerOf(problem.b), pointerOf(out));
}

/** The same plus an addend, in one step. Returns false where there is none for it. */
export function matmulAdd(
  device: Device,
  problem: MatmulProblem & { addend: Tensor<FloatDType> },
  out: Tensor<FloatDType>,
): boolean {
  const [a, b, addend] = [pointerOf(problem.a), pointerOf(problem.b), pointerOf(problem.addend)];
  return device.multiply(shapeOf(problem, out), a, b, pointerOf(out), addend);
}

const shapeOf = (
  { a, rows, columns, inner, transposeA, transposeB }: MatmulProblem,
  out: Tensor<FloatDType>,
): ProductShape => ({ rows, columns, inner, transposeA, transposeB, dtype: a.dtype, outDtype: out.dtype });

/**
 * A product of matrices at these addresses: by cuBLASLt where it is found, else by the kernels here. Where the result is float32 and
 * the factors are not, {@link hasTensorCores} must hold.
 */
export function product(device: Device, shape: ProductShape, a: number, b: number, out: number): void {
  if (device.multiply(shape, a, b, out)) return;
  if (hasTensorCores(device, shape)) sm80Matmul(device, shape, a, b, out);
  else plainMatmul(device, shape, a, b, out);
}

/** Whether the kernel for tensor cores is allowed and made for such factors: their rows are multiples of 16 bytes. */
export const hasTensorCores = (device: Device, shape: ProductShape): boolean =>
  device.path !== "plain" &&
  shape.dtype !== "f32" &&
  (shape.transposeA ? shape.rows : shape.inner) % 8 === 0 &&
  (shape.transposeB ? shape.inner : shape.columns) % 8 === 0;

/** As in plain_matmul.cu. */
const [PLAIN_THREADS, PLAIN_TILE] = [256, 64];

/** On the float32 units: any dtype and size. */
function plainMatmul(device: Device, shape: ProductShape, a: number, b: number, out: number): void {
  const { rows, columns, inner, transposeA, transposeB, dtype } = shape;
  const args = new Arguments()
    .pointer(a)
    .pointer(b)
    .pointer(out)
    .int(rows)
    .int(columns)
    .int(inner)
    .int(Number(transposeA))
    .int(Number(transposeB));
  const grid = [ceilDiv(rows, PLAIN_TILE) * ceilDiv(columns, PLAIN_TILE), 1, 1] as const;
  device.launch(device.kernel("plain_matmul", `plain_matmul_${dtype}`), grid, PLAIN_THREADS, 0, args);
}

/** As in sm80_matmul.cu. */
const [THREADS, TILE, DEPTH, STAGES] = [256, 128, 32, 3];
const SHARED = STAGES * 2 * TILE * DEPTH * 2;
/** CTAs that a product is cut into where it has few tiles, and what of the summed extent a part has at least. */
const [WANTED, LEAST_PART] = [256, 512];

/** The parts that a product is cut into along the summed extent: a matter of its shape, so that results repeat. */
function partsOf({ rows, columns, inner }: ProductShape): { readonly part: number; readonly parts: number } {
  const tiles = ceilDiv(rows, TILE) * ceilDiv(columns, TILE);
  const most = Math.max(1, Math.min(Math.floor(WANTED / tiles), Math.floor(inner / LEAST_PART)));
  const part = Math.max(DEPTH, DEPTH * ceilDiv(ceilDiv(inner, most), DEPTH));
  return { part, parts: Math.max(1, ceilDiv(inner, part)) };
}

/** On tensor cores. */
function sm80Matmul(device: Device, shape: ProductShape, a: number, b: number, out: number): void {
  const { rows, columns, inner, transposeA, transposeB, dtype, outDtype } = shape;
  const size = rows * columns;
  if (size === 0) return;
  const { part, parts } = partsOf(shape);
  using scratch = device.scratch(parts === 1 ? 0 : 4 * parts * size);
  // What is float32 is written as the only part is.
  const sums = parts > 1 ? scratch.pointer : outDtype === "f32" ? out : 0;
  const args = new Arguments()
    .pointer(a)
    .pointer(b)
    .pointer(out)
    .pointer(sums)
    .int(rows)
    .int(columns)
    .int(inner)
    .int(part);
  const transposed = `${transposeA ? "a" : ""}${transposeB ? "b" : ""}`;
  const kernel = device.kernel("sm80_matmul", `sm80_matmul_${dtype}${transposed && `_${transposed}`}`);
  const grid = [ceilDiv(rows, TILE) * ceilDiv(columns, TILE), parts, 1] as const;
  device.launch(kernel, grid, THREADS, SHARED, args);
  if (parts > 1) columnSums(device, { rows: parts, columns: size, dtype: outDtype }, scratch.pointer, out);
}

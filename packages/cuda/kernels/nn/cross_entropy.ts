import {
  bytesPerElement,
  type CrossEntropyProblem,
  type CrossEntropyResult,
  type FloatDType,
  type LinearCrossEntropyGradients,
  type LinearCrossEntropyProblem,
  type Tensor,
} from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";
import { columnSums } from "./column_sums.js";
import { hasTensorCores, product } from "./matmul.js";

const THREADS = 256;
/** Columns that a CTA of the backward kernel takes. */
const COLUMNS = THREADS * 8;

/** Logits and what belongs to their rows, by address. */
interface LogitRows {
  readonly dtype: FloatDType;
  readonly rows: number;
  readonly columns: number;
  readonly logits: number;
  readonly targets: number;
  readonly lse: number;
}

/** Loss and log-sum-exp of each row. */
function lossOfRows(device: Device, { dtype, rows, columns, ...at }: LogitRows, loss: number): void {
  const args = new Arguments()
    .pointer(at.logits)
    .pointer(at.targets)
    .pointer(loss)
    .pointer(at.lse)
    .int(columns);
  device.launch(device.kernel("cross_entropy", `cross_entropy_${dtype}`), [rows, 1, 1], THREADS, 0, args);
}

/** Gradients of the logits; they may take the logits' place. */
function gradientsOfRows(
  device: Device,
  { dtype, rows, columns, ...at }: LogitRows,
  dLoss: number,
  dLogits: number,
): void {
  const args = new Arguments()
    .pointer(dLoss)
    .pointer(at.logits)
    .pointer(at.targets)
    .pointer(at.lse)
    .pointer(dLogits)
    .int(columns);
  const kernel = device.kernel("cross_entropy_backward", `cross_entropy_backward_${dtype}`);
  device.launch(kernel, [rows, ceilDiv(columns, COLUMNS), 1], THREADS, 0, args);
}

const rowsOf = (
  { logits, targets }: { readonly logits: Tensor<FloatDType>; readonly targets: Tensor<"i32"> },
  lse: Tensor<"f32">,
): LogitRows => ({
  dtype: logits.dtype,
  rows: logits.shape[0],
  columns: logits.shape[1],
  logits: pointerOf(logits),
  targets: pointerOf(targets),
  lse: pointerOf(lse),
});

/** `Backend.crossEntropy`. */
export function crossEntropy(
  device: Device,
  problem: CrossEntropyProblem,
  { loss, lse }: CrossEntropyResult,
): void {
  lossOfRows(device, rowsOf(problem, lse), pointerOf(loss));
}

/** `Backend.crossEntropyBackward`. */
export function crossEntropyBackward(
  device: Device,
  problem: CrossEntropyProblem & { dLoss: Tensor<"f32">; lse: Tensor<"f32"> },
  dLogits: Tensor<FloatDType>,
): void {
  gradientsOfRows(device, rowsOf(problem, problem.lse), pointerOf(problem.dLoss), pointerOf(dLogits));
}

/** Chunks of tokens are multiples of so many, so that their rows begin at multiples of 256 bytes. */
const CHUNK_STEP = 128;

/** A chunk of tokens: the first one, and how many. */
interface Chunk {
  readonly first: number;
  readonly count: number;
}

/** Cuts the tokens so that the logits of a chunk fit into the workspace, and into chunks as long as each other. */
function chunksOf(device: Device, { x, weight }: LinearCrossEntropyProblem): Chunk[] {
  const { dtype } = x;
  const [tokens, inner] = x.shape;
  const [columns] = weight.shape;
  const shape = { rows: columns, columns: inner, inner: tokens, transposeA: true, transposeB: false };
  // Of chunks, gradients of the weight are summed in float32.
  const divisible = dtype === "f32" || hasTensorCores(device, { ...shape, dtype, outDtype: "f32" });
  const most = divisible ? device.maxWorkspaceBytes / (columns * bytesPerElement(dtype)) : tokens;
  const chunks = Math.max(1, ceilDiv(tokens, Math.max(most, CHUNK_STEP)));
  const length = CHUNK_STEP * ceilDiv(ceilDiv(tokens, chunks), CHUNK_STEP);
  return Array.from({ length: tokens === 0 ? 0 : ceilDiv(tokens, length) }, (_, i) => ({
    first: i * length,
    count: Math.min(length, tokens - i * length),
  }));
}

/** Computes logits, loss and log-sum-exp of each chunk of tokens in turn, and lets `use` have the logits then. */
function overLogits(
  device: Device,
  problem: LinearCrossEntropyProblem,
  loss: Tensor<"f32">,
  use: (rows: LogitRows, chunk: Chunk, index: number) => void,
): void {
  const { x, weight, targets } = problem;
  const { dtype } = x;
  const [columns, inner] = weight.shape;
  const chunks = chunksOf(device, problem);
  using logits = device.scratch((chunks[0]?.count ?? 0) * columns * bytesPerElement(dtype));
  using lse = device.scratch(4 * loss.size);
  for (const [index, chunk] of chunks.entries()) {
    const { first, count } = chunk;
    const shape = {
      rows: count,
      columns,
      inner,
      transposeA: false,
      transposeB: true,
      dtype,
      outDtype: dtype,
    };
    const at = pointerOf(x) + first * inner * bytesPerElement(dtype);
    product(device, shape, at, pointerOf(weight), logits.pointer);
    const place = { targets: pointerOf(targets) + 4 * first, lse: lse.pointer + 4 * first };
    const rows = { dtype, rows: count, columns, logits: logits.pointer, ...place };
    lossOfRows(device, rows, pointerOf(loss) + 4 * first);
    use(rows, chunk, index);
  }
}

/** `Backend.linearCrossEntropy`. */
export const linearCrossEntropy = (
  device: Device,
  problem: LinearCrossEntropyProblem,
  loss: Tensor<"f32">,
): void => overLogits(device, problem, loss, () => {});

/** `Backend.linearCrossEntropyBackward`. */
export function linearCrossEntropyBackward(
  device: Device,
  problem: LinearCrossEntropyProblem & { dLoss: Tensor<"f32"> },
  { loss, dx, dWeight }: LinearCrossEntropyGradients,
): void {
  const { x, weight, dLoss } = problem;
  const { dtype } = x;
  const [columns, channels] = weight.shape;
  const chunks = chunksOf(device, problem).length;
  if (chunks === 0) {
    device.fill(pointerOf(dWeight), dWeight.size * bytesPerElement(dtype), 0);
    return;
  }
  using parts = device.scratch(chunks === 1 ? 0 : 4 * chunks * weight.size);
  overLogits(device, problem, loss, (rows, { first, count }, index) => {
    const dLogits = rows.logits;
    gradientsOfRows(device, rows, pointerOf(dLoss) + 4 * first, dLogits);
    const begin = first * channels * bytesPerElement(dtype);
    const toX = { rows: count, columns: channels, inner: columns, transposeA: false, transposeB: false };
    product(device, { ...toX, dtype, outDtype: dtype }, dLogits, pointerOf(weight), pointerOf(dx) + begin);
    const toWeight = { rows: columns, columns: channels, inner: count, transposeA: true, transposeB: false };
    const part = chunks === 1 ? pointerOf(dWeight) : parts.pointer + 4 * index * weight.size;
    const outDtype = chunks === 1 ? dtype : "f32";
    product(device, { ...toWeight, dtype, outDtype }, dLogits, pointerOf(x) + begin, part);
  });
  if (chunks === 1) return;
  columnSums(device, { rows: chunks, columns: weight.size, dtype }, parts.pointer, pointerOf(dWeight));
}

import { ArgumentError } from "@moba-js/tensor";
import { checkInteger, checkPositive } from "./check.js";

/** The shape of one attention layer's forward pass over one sequence, causal. */
export interface WorkOptions {
  /** `N`, tokens. */
  readonly tokens: number;
  /** `d`. */
  readonly headDim: number;
  /** Query heads (each with keys and values of its own). Default 1. */
  readonly heads?: number;
  /** Bytes of an element. Default 2 (bf16, f16). */
  readonly bytesPerElement?: number;
}

/** A configuration of MoBA. */
export interface MobaConfiguration {
  /** `B`. */
  readonly blockSize: number;
  /** `k`, own block included. */
  readonly topK: number;
  /** `W`, the width of the key convolution; 0 for none. */
  readonly width: number;
}

/** What a forward pass must do: the counts that a cost model prices. */
export interface Work {
  /** Floating-point operations of scoring queries against centroids. */
  readonly routingFlops: number;
  /** Floating-point operations of attention over the chosen blocks. */
  readonly attentionFlops: number;
  /** Bytes through device memory. */
  readonly bytes: number;
}

/** What a unit of each kind of work takes on a backend; measured ones come from {@link fitCost}. */
export interface CostCoefficients {
  /** Seconds per floating-point operation of routing, selection included. */
  readonly secondsPerRoutingFlop: number;
  /** Seconds per floating-point operation of attention. */
  readonly secondsPerAttentionFlop: number;
  /** Seconds per byte. */
  readonly secondsPerByte: number;
}

/**
 * Coefficients from arithmetic, not from measurement: an NVIDIA H100 that attends at 500 TFLOP/s, scores and selects at
 * 150 TFLOP/s and moves 3 TB/s. Good for comparing configurations; for times of a real backend use {@link fitCost}.
 */
export const NOMINAL_COST: CostCoefficients = {
  secondsPerRoutingFlop: 1 / 150e12,
  secondsPerAttentionFlop: 1 / 500e12,
  secondsPerByte: 1 / 3e12,
};

/**
 * The work of one causal MoBA forward pass, by stage: convolution (reads and writes the keys), centroids (read the keys),
 * routing (2d operations a query and earlier block), attention (4d operations a query and attended key), and a slot for
 * each query and chosen earlier block (the query gathered, its partial output written and read back), besides q, k, v
 * read and the output written once.
 *
 * @throws ArgumentError if a size is not an integer ≥ 1, or `width` is not an integer ≥ 0.
 */
export function countWork(options: WorkOptions & MobaConfiguration): Work {
  const { tokens, headDim, heads = 1, bytesPerElement = 2, blockSize, topK, width } = options;
  checkSizes(options);
  checkInteger("blockSize", blockSize, 1);
  checkInteger("topK", topK, 1);
  checkInteger("width", width, 0);
  const blocks = Math.ceil(tokens / blockSize);
  let scored = 0;
  let slots = 0;
  let ownPairs = 0;
  for (let block = 0; block < blocks; block++) {
    const rows = Math.min(blockSize, tokens - block * blockSize);
    scored += rows * block;
    slots += rows * Math.min(topK - 1, block);
    ownPairs += (rows * (rows + 1)) / 2;
  }
  const row = headDim * bytesPerElement;
  const keyPasses = 1 + (width > 0 ? 2 : 0);
  return {
    routingFlops: heads * 2 * headDim * scored,
    attentionFlops: heads * 4 * headDim * (slots * blockSize + ownPairs),
    bytes: heads * row * ((4 + keyPasses) * tokens + 3 * slots),
  };
}

/**
 * The work of dense causal attention, for comparison: `4d·N(N + 1)/2` operations, and q, k, v and the output once.
 *
 * @throws ArgumentError if a size is not an integer ≥ 1.
 */
export function countDenseWork(options: WorkOptions): Work {
  const { tokens, headDim, heads = 1, bytesPerElement = 2 } = options;
  checkSizes(options);
  return {
    routingFlops: 0,
    attentionFlops: (heads * 4 * headDim * tokens * (tokens + 1)) / 2,
    bytes: heads * 4 * tokens * headDim * bytesPerElement,
  };
}

function checkSizes({ tokens, headDim, heads = 1, bytesPerElement = 2 }: WorkOptions): void {
  checkInteger("tokens", tokens, 1);
  checkInteger("headDim", headDim, 1);
  checkInteger("heads", heads, 1);
  checkPositive("bytesPerElement", bytesPerElement);
}

/** The predicted time of some work, in seconds: each count times its coefficient. */
export function predictSeconds(work: Work, cost: CostCoefficients): number {
  return (
    work.routingFlops * cost.secondsPerRoutingFlop +
    work.attentionFlops * cost.secondsPerAttentionFlop +
    work.bytes * cost.secondsPerByte
  );
}

/** Some work and the time a backend took for it. */
export interface CostMeasurement {
  readonly work: Work;
  readonly seconds: number;
}

/**
 * The coefficients of a backend from measured times, by least squares of the relative error, none negative. Measure
 * several block sizes, top-k and lengths; a kind of work that never shows in the times gets coefficient 0.
 *
 * @throws ArgumentError if there are fewer than 3 measurements, a time is not > 0, or the measurements do not tell the
 *   kinds of work apart.
 */
export function fitCost(measurements: readonly CostMeasurement[]): CostCoefficients {
  if (measurements.length < 3) {
    throw new ArgumentError("measurements", measurements.length, "at least 3 measurements");
  }
  for (const { seconds } of measurements) checkPositive("measurements.seconds", seconds);
  const rows = measurements.map(({ work, seconds }) => [
    work.routingFlops / seconds,
    work.attentionFlops / seconds,
    work.bytes / seconds,
  ]);
  // With three unknowns, non-negative least squares is the best of the 7 unrestricted fits to a subset.
  let best: { coefficients: number[]; error: number } | undefined;
  for (let subset = 1; subset < 8; subset++) {
    const columns = [0, 1, 2].filter((column) => subset & (1 << column));
    const solution = leastSquares(rows, columns);
    if (!solution || solution.some((value) => value < 0)) continue;
    const error = rows.reduce((sum, row) => {
      const predicted = columns.reduce((total, column, i) => total + row[column] * solution[i], 0);
      return sum + (predicted - 1) ** 2;
    }, 0);
    if (best && error >= best.error) continue;
    const coefficients = [0, 0, 0];
    columns.forEach((column, i) => {
      coefficients[column] = solution[i];
    });
    best = { coefficients, error };
  }
  if (!best) {
    throw new ArgumentError("measurements", measurements.length, "measurements that vary in their work");
  }
  const [secondsPerRoutingFlop, secondsPerAttentionFlop, secondsPerByte] = best.coefficients;
  return { secondsPerRoutingFlop, secondsPerAttentionFlop, secondsPerByte };
}

/**
 * The x that minimizes Σ (row·x − 1)² over the chosen columns, by Gauss-Jordan elimination on the normal equations of
 * columns scaled to length 1; undefined if these are singular.
 */
function leastSquares(rows: readonly number[][], columns: readonly number[]): number[] | undefined {
  const scales = columns.map((column) => Math.hypot(...rows.map((row) => row[column])));
  if (scales.some((scale) => scale === 0)) return undefined;
  const system = columns.map((a, i) => [
    ...columns.map((b, j) => rows.reduce((sum, row) => sum + row[a] * row[b], 0) / scales[i] / scales[j]),
    rows.reduce((sum, row) => sum + row[a], 0) / scales[i],
  ]);
  for (let pivot = 0; pivot < columns.length; pivot++) {
    if (Math.abs(system[pivot][pivot]) < 1e-10) return undefined;
    for (let i = 0; i < columns.length; i++) {
      if (i === pivot) continue;
      const factor = system[i][pivot] / system[pivot][pivot];
      for (let j = pivot; j <= columns.length; j++) system[i][j] -= factor * system[pivot][j];
    }
  }
  return columns.map((_, i) => system[i][columns.length] / system[i][i] / scales[i]);
}

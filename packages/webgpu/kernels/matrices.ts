import type { FloatDType } from "@moba-js/tensor";
import type { Context } from "../src/context.js";

/** Rows of a subgroup of 32 threads, two matrices high: as in the kernels on matrix units. */
export const ROWS = 32;
/** Rows and columns of a matrix: also how many keys or centroids are scored at a time. */
export const SIDE = 16;
/** Matrices of channels that registers have room for. */
const MOST_STEPS = 8;
/** Subgroups of a workgroup, the best first: see the notes on speed. */
const SUBGROUP_COUNTS: readonly number[] = [4, 2, 1];
/** Groups of 16 bytes that pass between lanes and matrices, a row: a matrix of float32, and one more. */
const ROW_SCRATCH = SIDE / 4 + 1;

/** What a kernel on the matrix units is made of. */
export interface MatrixShape {
  readonly SUBGROUP_COUNT: number;
  /** Matrices of channels. */
  readonly STEPS: number;
  /** Pairs of matrices of channels. */
  readonly PAIRS: number;
  /** Groups of eight channels. */
  readonly EIGHTS: number;
}

/**
 * The shape of a workgroup on the matrix units; nothing where they cannot be used.
 * @param shared groups of 16 bytes of workgroup memory that its subgroups share, where rows have so many groups of eight channels
 */
export function matrixShape(
  { matrices, workgroup }: Context,
  dtype: FloatDType,
  headDim: number,
  shared: (eights: number) => number,
): MatrixShape | undefined {
  const STEPS = Math.ceil(headDim / SIDE);
  if (!matrices || dtype !== "f16" || headDim % 8 > 0 || STEPS > MOST_STEPS) return undefined;
  const EIGHTS = 2 * STEPS;
  const FLAGS = 1; // what is noted for all
  const SUBGROUP_COUNT = SUBGROUP_COUNTS.find(
    (count) =>
      32 * count <= workgroup.invocations &&
      16 * (shared(EIGHTS) + count * ROWS * ROW_SCRATCH + FLAGS) <= workgroup.storage,
  );
  return SUBGROUP_COUNT ? { SUBGROUP_COUNT, STEPS, PAIRS: Math.ceil(STEPS / 2), EIGHTS } : undefined;
}

import { type BlockRouting, centroids, routeBlocks } from "@moba-js/reference";
import { cuBlocks, type FloatDType } from "@moba-js/tensor";
import { type Problem, queryShape, type RoutingRow, routingRows, slotsOf } from "./cases.js";
import { F32_BOUND, type HostTensor, UNIT_ROUNDOFF } from "./compare.js";
import type { Outcome } from "./report.js";

/**
 * How far an unselected block's score may lie above a selected one's, as a share of `‖q‖·max‖centroid‖`. In low precision
 * a backend may round centroids to the dtype, for its matrix units.
 */
const SCORE_SLACK: Readonly<Record<FloatDType, number>> = {
  f32: F32_BOUND,
  f16: UNIT_ROUNDOFF.f16,
  bf16: UNIT_ROUNDOFF.bf16,
};

/** The share of slots in which the oracle may disagree, on Gaussian inputs. */
const DISAGREEMENT = 0.002;

/** Fewer slots say nothing about agreement. */
const ENOUGH_SLOTS = 2000;

/** A routing tensor read from a backend, for the oracle. */
export const blockRouting = (problem: Problem, indices: HostTensor): BlockRouting => ({
  indices: Int32Array.from(indices.values),
  slots: indices.shape[2],
  blockSize: problem.blockSize,
  causal: problem.causal,
});

/** The blocks of each row, unused slots left out. */
function chosenBlocks(indices: HostTensor, { row }: RoutingRow): number[] {
  const slots = indices.shape[2];
  return [...indices.values.subarray(row * slots, (row + 1) * slots)].filter((block) => block !== -1);
}

/** What is wrong with the form of a routing, if anything: shape, visible blocks, no duplicates, own block, count. */
export function malformedRouting(problem: Problem, indices: HostTensor): string | undefined {
  const [tokens, heads] = queryShape(problem);
  const shape = `i32 [${[tokens, heads, slotsOf(problem)].join(", ")}]`;
  const got = `${indices.dtype} [${indices.shape.join(", ")}]`;
  if (got !== shape) return `got ${got}, expected ${shape}`;
  for (const row of routingRows(problem)) {
    const chosen = chosenBlocks(indices, row);
    const at = `row [${Math.floor(row.row / heads)}, ${row.row % heads}] = [${chosen}]`;
    const outside = chosen.find((block) => !(block >= 0 && block < row.blocks));
    if (outside !== undefined) return `${at}: block ${outside} is not among the ${row.blocks} visible ones`;
    if (new Set(chosen).size !== chosen.length) return `${at}: a block occurs twice`;
    if (row.own >= 0 && !chosen.includes(row.own)) return `${at}: own block ${row.own} is missing`;
    const count = Math.min(problem.topK, row.blocks);
    if (chosen.length !== count) return `${at}: expected ${count} blocks`;
  }
  return undefined;
}

/** The euclidean norm of `d` elements. */
function norm(x: Float64Array, begin: number, d: number): number {
  let sum = 0;
  for (let c = begin; c < begin + d; c++) sum += x[c] ** 2;
  return Math.sqrt(sum);
}

/** A NaN score ranks below every other. */
const rankable = (score: number): number => (Number.isNaN(score) ? Number.NEGATIVE_INFINITY : score);

/**
 * The most by which an unselected block beats a selected one (own blocks aside), as a share of `‖q‖·max‖centroid‖`.
 */
function worstSelection(problem: Problem, indices: HostTensor): number {
  const { q, kvHeads, heads, headDim, cuSeqlensK, blockSize } = problem;
  const means = centroids({ ...problem, cuSeqlens: cuSeqlensK });
  const firstBlocks = cuBlocks(cuSeqlensK, blockSize);
  let worst = 0;
  for (const row of routingRows(problem)) {
    const chosen = new Set(chosenBlocks(indices, row));
    let lowestChosen = Number.POSITIVE_INFINITY;
    let highestOther = Number.NEGATIVE_INFINITY;
    let largestNorm = 0;
    for (let block = 0; block < row.blocks; block++) {
      if (block === row.own) continue;
      const kvHead = Math.floor((row.head * kvHeads) / heads);
      const mean = ((firstBlocks[row.sequence] + block) * kvHeads + kvHead) * headDim;
      let score = 0;
      for (let c = 0; c < headDim; c++) score += q[row.row * headDim + c] * means[mean + c];
      const length = norm(means, mean, headDim);
      if (Number.isFinite(length)) largestNorm = Math.max(largestNorm, length);
      if (chosen.has(block)) lowestChosen = Math.min(lowestChosen, rankable(score));
      else highestOther = Math.max(highestOther, rankable(score));
    }
    if (highestOther <= lowestChosen) continue;
    const unit = norm(q, row.row * headDim, headDim) * largestNorm;
    worst = Math.max(worst, (highestOther - lowestChosen) / unit);
  }
  return worst;
}

/** The share of the oracle's slots that a routing does not choose. */
function disagreement(problem: Problem, indices: HostTensor): { slots: number; share: number } {
  const oracle = routeBlocks(problem);
  const expected = { ...indices, values: Float64Array.from(oracle.indices) };
  let slots = 0;
  let missed = 0;
  for (const row of routingRows(problem)) {
    const chosen = new Set(chosenBlocks(indices, row));
    for (const block of chosenBlocks(expected, row)) {
      slots += 1;
      if (!chosen.has(block)) missed += 1;
    }
  }
  return { slots, share: slots === 0 ? 0 : missed / slots };
}

/** Judges a routing as a selection: its form, its scores, and on enough slots its agreement with the oracle. */
export function judgeRouting(problem: Problem, indices: HostTensor): Outcome[] {
  const malformed = malformedRouting(problem, indices);
  if (malformed !== undefined) return [{ check: "form", passed: false, message: malformed }];
  const measured = worstSelection(problem, indices);
  const allowed = SCORE_SLACK[problem.dtype];
  const selection = Number.isFinite(measured)
    ? { passed: measured <= allowed, measured, allowed }
    : { passed: false, message: "a block whose score is not finite was ranked wrongly" };
  const outcomes: Outcome[] = [
    { check: "form", passed: true },
    { check: "selection", ...selection },
  ];
  const { slots, share } = disagreement(problem, indices);
  if (slots < ENOUGH_SLOTS) return outcomes;
  return [
    ...outcomes,
    { check: "agreement", passed: share <= DISAGREEMENT, measured: share, allowed: DISAGREEMENT },
  ];
}

/** Judges a routing of scores that are exact in every dtype: it is the oracle's, ties to the lower block. */
export function judgeExactRouting(problem: Problem, indices: HostTensor): Outcome[] {
  const check = "ties";
  const malformed = malformedRouting(problem, indices);
  const { share } = malformed === undefined ? disagreement(problem, indices) : { share: 1 };
  if (share === 0) return [{ check, passed: true }];
  const message = malformed ?? "of equal scores the lower block must win";
  return [{ check, passed: false, measured: share, allowed: 0, message }];
}

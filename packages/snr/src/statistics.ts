import { checkOpenProbability } from "./check.js";
import { normalQuantile } from "./normal.js";

/** A number measured on random data. */
export interface Estimate {
  /** The estimate itself. */
  readonly value: number;
  /** Its standard error, by a delete-group jackknife; NaN if there were too few data for one. */
  readonly standardError: number;
}

/** How many groups the data are dealt into for the jackknife: enough for a stable error, few enough to be cheap. */
export const JACKKNIFE_GROUPS = 20;

/**
 * Statistics of pooled sums, with delete-group jackknife standard errors (Efron & Tibshirani 1993, chapter 11).
 *
 * Each group holds the sums of its share of the data; `statistics` turns pooled sums into numbers. Works for ratios and
 * other smooth functions, and with data that depend on each other inside a group.
 */
export function jackknife(
  groups: readonly Float64Array[],
  statistics: (sums: Float64Array) => readonly number[],
): Estimate[] {
  const total = new Float64Array(groups[0].length);
  for (const group of groups) for (let i = 0; i < total.length; i++) total[i] += group[i];
  const values = statistics(total);
  const leftOut = groups.map((group) => statistics(total.map((sum, i) => sum - group[i])));
  return values.map((value, i) => {
    const mean = leftOut.reduce((sum, replicate) => sum + replicate[i], 0) / groups.length;
    const squares = leftOut.reduce((sum, replicate) => sum + (replicate[i] - mean) ** 2, 0);
    return { value, standardError: Math.sqrt((squares * (groups.length - 1)) / groups.length) };
  });
}

/**
 * The two-sided quantile of Student's t with `degrees` degrees of freedom at `level`, by its Cornish-Fisher expansion
 * about the normal (Abramowitz & Stegun 26.7.5, two terms: within 0.2 % at 19 degrees and 99 %).
 */
function criticalValue(level: number, degrees: number): number {
  const z = normalQuantile((1 + level) / 2);
  const first = (z ** 3 + z) / (4 * degrees);
  const second = (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * degrees ** 2);
  return z + first + second;
}

/**
 * The confidence interval of an estimate, symmetric, by Student's t with the jackknife's degrees of freedom.
 *
 * @throws ArgumentError if `level` is not strictly between 0 and 1.
 */
export function confidenceInterval(estimate: Estimate, level = 0.95): { low: number; high: number } {
  checkOpenProbability("level", level);
  const margin = criticalValue(level, JACKKNIFE_GROUPS - 1) * estimate.standardError;
  return { low: estimate.value - margin, high: estimate.value + margin };
}

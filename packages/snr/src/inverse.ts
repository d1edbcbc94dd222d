import { ArgumentError } from "@moba-js/tensor";
import { checkInteger, checkOpenProbability, checkPositive } from "./check.js";
import { hitProbability, missProbability } from "./hit.js";
import { snr } from "./model.js";

/** A recall wanted of a router: the probability that the signal block is chosen. */
export interface RecallOptions {
  /** The wanted P(hit), strictly between 0 and 1. */
  readonly recall: number;
  /** `n'`, the number of competing noise blocks. */
  readonly competitors: number;
  /** `k'`, the slots they compete for. */
  readonly slots: number;
}

/** The recall of a router that sees no signal: k' of the n' + 1 blocks are chosen at random. */
function chanceRecall({ competitors, slots }: RecallOptions): number {
  return Math.min(1, slots / (competitors + 1));
}

/**
 * The SNR at which `hitProbability` is the wanted recall: the exact counterpart of the paper's condition
 * `Φ⁻¹(1 − k/n)` (arXiv 2511.11571, section 3). Negative for a recall below chance, `k'/(n' + 1)`.
 *
 * @throws ArgumentError if `recall` is not strictly between 0 and 1, if `slots = 0` (no SNR gives a hit), or if
 *   `slots > competitors` (every SNR gives a certain one).
 */
export function snrForRecall({ recall, competitors, slots }: RecallOptions): number {
  checkOpenProbability("recall", recall);
  checkInteger("competitors", competitors, 1);
  checkInteger("slots", slots, 0);
  if (slots === 0) {
    throw new ArgumentError("slots", slots, "at least 1: with no slot there is no hit at any SNR");
  }
  if (slots > competitors) {
    const reason = `at most competitors = ${competitors}: above it every block is chosen at any SNR`;
    throw new ArgumentError("slots", slots, reason);
  }
  // Compare on the smaller side, where probabilities keep their relative accuracy.
  const tooLow = (snr: number) =>
    recall > 0.5
      ? missProbability({ snr, competitors, slots }) > 1 - recall
      : hitProbability({ snr, competitors, slots }) < recall;
  let low = -100;
  let high = 100;
  while (high - low > 1e-12) {
    const middle = (low + high) / 2;
    if (tooLow(middle)) low = middle;
    else high = middle;
  }
  return high;
}

/**
 * The effective separation `Δμ_eff` needed for a recall: `SNR / √(d / (2B))`.
 *
 * @throws ArgumentError as {@link snrForRecall}, or if `headDim` or `blockSize` is not > 0.
 */
export function separationForRecall({
  headDim,
  blockSize,
  ...target
}: RecallOptions & { readonly headDim: number; readonly blockSize: number }): number {
  return snrForRecall(target) / snr({ headDim, blockSize, separation: 1 });
}

/** The needed SNR of a target that must lie above chance, given a separation that must be positive. */
function positiveSnrForRecall(target: RecallOptions, separation: number): number {
  const needed = snrForRecall(target);
  const chance = chanceRecall(target);
  if (target.recall <= chance) {
    throw new ArgumentError("recall", target.recall, `above chance, ${chance}: below it any router will do`);
  }
  if (!(separation > 0 && separation < Infinity)) {
    const reason = `a finite number > 0: without separation the recall is chance, ${chance}`;
    throw new ArgumentError("separation", separation, reason);
  }
  return needed;
}

/**
 * The largest block size that gives a recall, `B = d/2 · (Δμ_eff / SNR)²`, as a real number ≥ 1 for `n'` and `k'` held
 * fixed; any smaller block does better. (For a context of fixed length, where `n'` changes with `B`, use
 * `plan`.)
 *
 * @throws ArgumentError as {@link snrForRecall}; if the recall is not above chance; if `separation` is not > 0; or if
 *   not even a block of one key gives the recall: the message says which separation, head dimension or number of slots
 *   would.
 */
export function blockSizeForRecall({
  headDim,
  separation,
  ...target
}: RecallOptions & { readonly headDim: number; readonly separation: number }): number {
  checkPositive("headDim", headDim);
  const needed = positiveSnrForRecall(target, separation);
  const blockSize = (headDim / 2) * (separation / needed) ** 2;
  if (blockSize < 1) {
    const atOne = { ...target, blockSize: 1 };
    const ways = [
      `separation >= ${separationForRecall({ ...atOne, headDim })}`,
      `headDim >= ${headDimForRecall({ ...atOne, separation })}`,
      `slots >= ${slotsForRecall({ ...target, snr: snr({ headDim, blockSize: 1, separation }) })}`,
    ];
    const reason = `at most what blocks of one key give; it would be possible with ${ways.join(", or ")}`;
    throw new ArgumentError("recall", target.recall, reason);
  }
  return blockSize;
}

/**
 * The smallest head dimension that gives a recall, `d = 2B · (SNR / Δμ_eff)²`, as a real number.
 *
 * @throws ArgumentError as {@link snrForRecall}; if `blockSize` is not > 0; if the recall is not above chance; or if
 *   `separation` is not > 0: then no head dimension helps.
 */
export function headDimForRecall({
  blockSize,
  separation,
  ...target
}: RecallOptions & { readonly blockSize: number; readonly separation: number }): number {
  checkPositive("blockSize", blockSize);
  return 2 * blockSize * (positiveSnrForRecall(target, separation) / separation) ** 2;
}

/**
 * The smallest number of slots `k'` (an integer) with which a given SNR reaches a recall. Always possible: `n' + 1`
 * slots choose every block. For causal MoBA, `topK` is one more, the own block's.
 *
 * @throws ArgumentError if `recall` is not strictly between 0 and 1, `competitors` is not an integer ≥ 0, or `snr` is NaN.
 */
export function slotsForRecall({
  recall,
  competitors,
  snr,
}: {
  readonly recall: number;
  readonly competitors: number;
  readonly snr: number;
}): number {
  checkOpenProbability("recall", recall);
  checkInteger("competitors", competitors, 0);
  let low = 0;
  let high = competitors + 1;
  while (high - low > 1) {
    const slots = Math.floor((low + high) / 2);
    if (missProbability({ snr, competitors, slots }) <= 1 - recall) high = slots;
    else low = slots;
  }
  return high;
}

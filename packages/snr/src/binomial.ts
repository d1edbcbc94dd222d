import { checkInteger, checkOpenProbability, checkProbability } from "./check.js";

/** Terms this far below the largest are left out. */
const NEGLIGIBLE = 1e-30;

/**
 * The probabilities of a binomial distribution around its mode, by the recurrence between neighbouring terms and
 * normalized by their sum (so no factorials); what lies outside is below {@link NEGLIGIBLE} of the largest.
 */
function binomialTerms(trials: number, probability: number): { first: number; terms: number[] } {
  const mode = Math.min(trials, Math.floor((trials + 1) * probability));
  const odds = probability / (1 - probability);
  const above: number[] = [];
  for (let count = mode, term = 1; count < trials && term > NEGLIGIBLE; count++) {
    term *= ((trials - count) / (count + 1)) * odds;
    above.push(term);
  }
  const below: number[] = [];
  for (let count = mode, term = 1; count > 0 && term > NEGLIGIBLE; count--) {
    term *= count / (trials - count + 1) / odds;
    below.push(term);
  }
  const terms = [...below.reverse(), 1, ...above];
  const sum = terms.reduce((total, term) => total + term, 0);
  return { first: mode - below.length, terms: terms.map((term) => term / sum) };
}

/** What a binomial interval is asked for. */
export interface BinomialIntervalOptions {
  /** How many independent trials. */
  readonly trials: number;
  /** The probability of success in each. */
  readonly probability: number;
  /** The coverage wanted, for example 0.99. */
  readonly level: number;
}

/**
 * The central interval of counts of a binomial distribution: the exact quantiles at `(1 − level)/2` and
 * `(1 + level)/2`, so that the count lies in `[low, high]` with probability at least `level` and outside on either side
 * with probability at most half the rest. For judging a count of hits against a predicted probability.
 *
 * @throws ArgumentError if `trials` is not an integer ≥ 1, `probability` not in [0, 1], `level` not in (0, 1).
 */
export function binomialInterval({ trials, probability, level }: BinomialIntervalOptions): {
  low: number;
  high: number;
} {
  checkInteger("trials", trials, 1);
  checkProbability("probability", probability);
  checkOpenProbability("level", level);
  if (probability === 0) return { low: 0, high: 0 };
  if (probability === 1) return { low: trials, high: trials };
  const { first, terms } = binomialTerms(trials, probability);
  const tail = (1 - level) / 2;
  let low = 0;
  for (let mass = terms[0]; mass < tail; mass += terms[low]) low++;
  let high = terms.length - 1;
  for (let mass = terms[high]; mass <= tail; mass += terms[high]) high--;
  return { low: first + low, high: first + high };
}

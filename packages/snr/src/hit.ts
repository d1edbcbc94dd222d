import { ArgumentError } from "@moba-js/tensor";
import { checkInteger } from "./check.js";
import { logNormalCdf } from "./normal.js";

/** A signal block among its competitors. */
export interface HitOptions {
  /** The signal-to-noise ratio of the router, see `snr`; may be infinite or negative. */
  readonly snr: number;
  /** `n'`, the number of noise blocks that compete with the signal block. Causal MoBA: `c − 1` for own block `c`. */
  readonly competitors: number;
  /** `k'`, the slots they compete for. Causal MoBA: `k − 1`, since the own block takes one. */
  readonly slots: number;
}

/** Beyond this |SNR| the rarer outcome is below e^−5000 and the commoner one is 1, for any n' a number can hold. */
const CERTAIN_SNR = 100;

/** The logarithm of a positive function that has one peak: every integrand below is log-concave. */
type LogDensity = (x: number) => number;

/** Where a unimodal function peaks in [low, high], by golden-section search. */
function peak(f: LogDensity, low: number, high: number): number {
  const golden = (Math.sqrt(5) - 1) / 2;
  let a = high - golden * (high - low);
  let b = low + golden * (high - low);
  let fa = f(a);
  let fb = f(b);
  while (high - low > 1e-6) {
    if (fa > fb) {
      high = b;
      b = a;
      fb = fa;
      a = high - golden * (high - low);
      fa = f(a);
    } else {
      low = a;
      a = b;
      fa = fb;
      b = low + golden * (high - low);
      fb = f(b);
    }
  }
  return (low + high) / 2;
}

/** Between `inside`, where f ≥ level, and `outside`, where f < level, the point where f passes the level. */
function crossing(f: LogDensity, level: number, inside: number, outside: number): number {
  while (Math.abs(outside - inside) > 1e-3 * Math.abs(outside + inside) + 1e-6) {
    const middle = (inside + outside) / 2;
    if (f(middle) >= level) inside = middle;
    else outside = middle;
  }
  return outside;
}

/**
 * log ∫ exp(f) over the line, for log-concave analytic f that peaks within [−reach, reach].
 *
 * The trapezoidal rule between the points where the integrand has fallen to e^−45 of its peak: for an analytic function
 * that vanishes at both ends it converges exponentially in the number of nodes, and since every term is positive the
 * result is accurate in relative terms, however small.
 */
function logIntegral(f: LogDensity, reach: number): number {
  const nodes = 128;
  const mode = peak(f, -reach, reach);
  const top = f(mode);
  const low = crossing(f, top - 45, mode, -reach - 20);
  const high = crossing(f, top - 45, mode, reach + 20);
  const step = (high - low) / nodes;
  let sum = 0;
  for (let i = 0; i <= nodes; i++) sum += Math.exp(f(low + i * step) - top);
  return top + Math.log(sum * step);
}

/**
 * log P(hit) or log P(miss) for 1 ≤ k' ≤ n' and a finite SNR.
 *
 * The binomial in `E_z[ P( Binomial(n', 1 − Φ(√2·SNR + z)) < k' ) ]` is below k' exactly when the k'-th smallest of
 * n' uniform variables exceeds the probability inside it, that is when the signal's score exceeds the k'-th best noise
 * score −x. So with the density of that order statistic,
 * `f(x) ∝ Φ(x)^(k'−1) · Φ(−x)^(n'−k') · φ(x)`,
 * the expectation over z is an integral of two smooth factors: `P(hit) = ∫ f(x) Φ(√2·SNR + x) dx`, and the miss has
 * Φ(−√2·SNR − x). The normalization of f is integrated too, so no gamma function is needed.
 */
function logOutcome({ snr, competitors, slots }: HitOptions, hit: boolean): number {
  const shift = Math.SQRT2 * snr;
  const reach = Math.abs(shift) + 40;
  const order: LogDensity = (x) =>
    (slots - 1) * logNormalCdf(x) + (competitors - slots) * logNormalCdf(-x) - (x * x) / 2;
  const outcome: LogDensity = (x) => order(x) + logNormalCdf(hit ? shift + x : -shift - x);
  return logIntegral(outcome, reach) - logIntegral(order, reach);
}

/** The outcomes that need no integral, as P(hit); undefined if one is needed. Checks the arguments. */
function certainHit({ snr, competitors, slots }: HitOptions): 0 | 1 | undefined {
  checkInteger("competitors", competitors, 0);
  checkInteger("slots", slots, 0);
  if (Number.isNaN(snr)) throw new ArgumentError("snr", snr, "a number");
  if (slots === 0) return 0;
  if (slots > competitors) return 1;
  if (snr > CERTAIN_SNR) return 1;
  if (snr < -CERTAIN_SNR) return 0;
  return undefined;
}

/**
 * The probability that the signal block is among the chosen, exactly under the model:
 * `P(hit) = E_z[ P( Binomial(n', 1 − Φ(√2·SNR + z)) < k' ) ]`, `z ~ N(0, 1)`.
 *
 * Given the standardized score z of the signal block, each of the n' noise blocks exceeds it independently with
 * probability `1 − Φ(√2·SNR + z)`; the signal is chosen when fewer than k' do. With one competitor and one slot this
 * is `1 − Φ(−SNR)`, the pairwise case of arXiv 2511.11571, section 3; the paper stops there, this is the exact
 * consequence of the same model for many blocks. Relative accuracy is 1e-10 or better for k' up to 1e5 (rounding grows
 * with k'), however small P(hit) is; for its complement use {@link missProbability}.
 *
 * @returns 0 if `slots = 0`, 1 if `slots > competitors`, else the probability.
 * @throws ArgumentError if `competitors` or `slots` is not an integer ≥ 0, or `snr` is NaN.
 */
export function hitProbability(options: HitOptions): number {
  return certainHit(options) ?? Math.min(1, Math.exp(logOutcome(options, true)));
}

/**
 * The probability that the signal block is not among the chosen, `1 − P(hit)`, accurate in relative terms where that
 * difference would cancel. See {@link hitProbability}, whose arguments and errors it shares.
 */
export function missProbability(options: HitOptions): number {
  const certain = certainHit(options);
  return certain === undefined ? Math.min(1, Math.exp(logOutcome(options, false))) : 1 - certain;
}

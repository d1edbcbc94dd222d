import { checkProbability } from "./check.js";

const LOG_SQRT_2PI = 0.9189385332046728;
const SQRT_2PI = 2.5066282746310002;

/** Below −TAIL the continued fraction takes over from the power series. */
const TAIL = 2;

/**
 * Φ(x) − 1/2 by the series φ(x) Σ x^(2i+1) / (1·3·5···(2i+1)): all terms have one sign, so nothing cancels.
 * Abramowitz & Stegun 26.2.11.
 */
function centralMass(x: number): number {
  let term = x;
  let sum = x;
  for (let i = 3; Math.abs(term) > Math.abs(sum) * 1e-17; i += 2) {
    term *= (x * x) / i;
    sum += term;
  }
  return (sum * Math.exp((-x * x) / 2)) / SQRT_2PI;
}

/**
 * Mills ratio Φ(−x)/φ(x) for x ≥ 2 by its continued fraction 1/(x + 1/(x + 2/(x + 3/(x + …)))).
 * Abramowitz & Stegun 26.2.14. 220/x levels are enough for double precision
 * (107 are needed at x = 2, 5 at x = 40).
 */
function millsRatio(x: number): number {
  let tail = x;
  for (let level = Math.ceil(220 / x); level >= 1; level--) tail = x + level / tail;
  return 1 / tail;
}

/**
 * Φ(x), the standard normal distribution function, to about 1e-14 relative in both tails down to the smallest
 * number (x ≈ −38; there the rounding of x²/2 costs about 1e-13).
 */
export function normalCdf(x: number): number {
  if (x < -TAIL) return x < -40 ? 0 : (millsRatio(-x) * Math.exp((-x * x) / 2)) / SQRT_2PI;
  if (x > TAIL) return 1 - normalCdf(-x);
  return 0.5 + centralMass(x);
}

/** log Φ(x), accurate for every x: no underflow in the left tail, no cancellation in the right one. */
export function logNormalCdf(x: number): number {
  if (x < -TAIL) return Math.log(millsRatio(-x)) - (x * x) / 2 - LOG_SQRT_2PI;
  if (x > TAIL) return Math.log1p(-normalCdf(-x));
  return Math.log(0.5 + centralMass(x));
}

/**
 * Φ⁻¹(p), the standard normal quantile: −Infinity at 0, Infinity at 1.
 *
 * Newton's method on log Φ, which is concave: from a start left of the root (½·exp(−x²/2) ≥ Φ(x) for x ≤ 0)
 * every step stays left of it and the error squares, so it cannot overshoot, however deep the tail.
 *
 * @throws ArgumentError if `p` is not in [0, 1].
 */
export function normalQuantile(p: number): number {
  checkProbability("p", p);
  if (p > 0.5) return 0 - normalQuantile(1 - p);
  if (p === 0) return -Infinity;
  const target = Math.log(p);
  let x = -Math.sqrt(-2 * Math.log(2 * p));
  for (let i = 0; i < 60; i++) {
    const logCdf = logNormalCdf(x);
    const slope = Math.exp((-x * x) / 2 - LOG_SQRT_2PI - logCdf);
    const step = (target - logCdf) / slope;
    x += step;
    if (Math.abs(step) <= 1e-15 * Math.max(1, -x)) break;
  }
  return x;
}

import { ArgumentError, ShapeError } from "@moba-js/tensor";
import { checkFinite, checkInteger, checkPositive } from "./check.js";
import type { World } from "./worlds.js";

/** Keys of one head and the weights of a convolution over them. */
export interface ConvolutionOptions {
  /** Keys of one sequence and one head, `[tokens, headDim]`, row-major. Not changed. */
  readonly keys: Float32Array | Float64Array;
  /** `d`. */
  readonly headDim: number;
  /** Weights, `[width, headDim]`, row-major; row `l` acts on the key `l` tokens back. */
  readonly weights: ArrayLike<number>;
}

/** Checks the shapes and returns the width. */
function convolutionWidth({ keys, headDim, weights }: ConvolutionOptions): number {
  checkInteger("headDim", headDim, 1);
  if (keys.length % headDim !== 0) throw new ShapeError("keys", [keys.length], `[tokens · ${headDim}]`);
  if (weights.length === 0 || weights.length % headDim !== 0) {
    throw new ShapeError("weights", [weights.length], `[width · ${headDim}], width >= 1`);
  }
  return weights.length / headDim;
}

/**
 * The linear part of the key convolution, depthwise and causal: `u_t = Σ_{l=0}^{W−1} w_l ⊙ k_{t−l}`, with missing
 * history zero. Source: arXiv 2511.11571, the appendix on the key convolution.
 *
 * (This package needs no backend, so it holds a small convolution of its own, for simulation and estimation.)
 *
 * @returns `[tokens, headDim]`, row-major.
 * @throws ShapeError if `keys` or `weights` does not divide into rows of `headDim`.
 */
export function linearConvolution(options: ConvolutionOptions): Float64Array {
  const width = convolutionWidth(options);
  const { keys, headDim, weights } = options;
  const result = new Float64Array(keys.length);
  for (let lag = 0; lag < width; lag++) {
    for (let row = lag * headDim; row < keys.length; row += headDim) {
      for (let c = 0; c < headDim; c++) {
        result[row + c] += weights[lag * headDim + c] * keys[row + c - lag * headDim];
      }
    }
  }
  return result;
}

/** SiLU(u) = u / (1 + e^−u). */
function silu(u: number): number {
  return u / (1 + Math.exp(-u));
}

/**
 * The key convolution, `k'_t = k_t + SiLU( Σ_{l=0}^{W−1} w_l ⊙ k_{t−l} )`: depthwise, causal, residual, missing history
 * zero. Source: arXiv 2511.11571, the appendix on the key convolution.
 *
 * @returns the convolved keys, `[tokens, headDim]`, row-major.
 * @throws ShapeError if `keys` or `weights` does not divide into rows of `headDim`.
 */
export function convolveKeys(options: ConvolutionOptions): Float64Array {
  const result = linearConvolution(options);
  for (let i = 0; i < result.length; i++) result[i] = options.keys[i] + silu(result[i]);
  return result;
}

/**
 * What a linear convolution with the same weights for every component does to the SNR of block routing: the factor
 * `ā / √(Σ a_s² / B)`, where `a_s` is the weight with which token s enters the block's sum and ā its mean over the block.
 *
 * The mean of `Σ_l w_l k_{t−l}` over a block is `Σ_l w_l` times the block's mean, but for the edges: of lag l, the first
 * l tokens come from the previous block and the last l leave for the next. Inside the block `a_s = Σ_l w_l`, so signal
 * and noise are scaled alike and the SNR stays. At the edges signal is lost and foreign noise comes in; by
 * Cauchy and Schwarz the factor is never above 1, and it is `1 − O(W/B)`. A linear convolution cannot help the router.
 * (That is the mean signal over the deviation of the noise. A strong signal suffers more: how much of it is lost then
 * depends visibly on where in the block it lies.)
 *
 * @throws ArgumentError if `weights` is empty or holds a number that is not finite, or `blockSize` is not an integer ≥ 1.
 */
export function linearConvolutionGain({
  weights,
  blockSize,
}: {
  /** One weight a lag; for a residual convolution add 1 to the first. */
  readonly weights: readonly number[];
  readonly blockSize: number;
}): number {
  checkInteger("blockSize", blockSize, 1);
  if (weights.length === 0) throw new ArgumentError("weights", weights, "at least one weight");
  for (const weight of weights) checkFinite("weights", weight);
  let own = 0;
  for (let token = 0; token < blockSize; token++) own += enteringWeight(weights, blockSize, token);
  return own / blockSize / Math.sqrt(linearPower(weights, blockSize));
}

/** The weight with which a token (counted from the block's first) enters the sum of its block's convolved keys. */
function enteringWeight(weights: readonly number[], blockSize: number, token: number): number {
  return weights.reduce((sum, weight, lag) => {
    return token + lag >= 0 && token + lag < blockSize ? sum + weight : sum;
  }, 0);
}

/** The variance of a block's sum of convolved noise, relative to that of the plain sum. */
function linearPower(weights: readonly number[], blockSize: number): number {
  let squares = 0;
  for (let token = 1 - weights.length; token < blockSize; token++) {
    squares += enteringWeight(weights, blockSize, token) ** 2;
  }
  return squares / blockSize;
}

/**
 * SiLU split into its odd and its even part, `SiLU(u) = u/2 + (u/2)·tanh(u/2)`.
 *
 * The odd part is exactly linear, so all that the nonlinearity of the key convolution adds is the even part: positive,
 * blind to the sign of u, about u²/4 near zero and |u|/2 far out.
 */
export function siluParts(u: number): { readonly linear: number; readonly even: number } {
  return { linear: u / 2, even: (u / 2) * Math.tanh(u / 2) };
}

/** A signal, and a convolution that meets it. */
export interface ConvolutionGainOptions {
  /** `W`, an integer ≥ 1. */
  readonly width: number;
  /** The weight of every lag, the same for every component; keys are taken to have components of variance 1. */
  readonly weight: number;
  /** `B`. */
  readonly blockSize: number;
  /** By how many standard deviations of a noise component a signal key is lifted in each component its query lights. */
  readonly amplitude: number;
  /** `m`, the signal keys in the block. */
  readonly clusterSize: number;
  /** Whether the signal keys follow each other, or lie at least `width` apart. */
  readonly adjacent: boolean;
  /**
   * Whether queries are positive in every component they light. If not, their signs are taken to be random, and the
   * even part, which is blind to them, adds nothing to the signal on average.
   */
  readonly positive: boolean;
}

/**
 * The factor by which the key convolution changes the SNR of block routing, for queries that light a few components
 * each and weights alike for all. Edges of the block aside it is
 *
 * `[ 1 + Ww/2 + Σ_t (E e(w·o_t·c + ν) − E e(ν)) / (mc) ] / √( (1 + Ww/2)² + Σ_{|l|<W} Cov(e(ν_0), e(ν_l)) )`
 *
 * with e the even part of SiLU ({@link siluParts}), c the amplitude, o_t how many of the m signal keys the window at t
 * holds, and ν the convolved noise, N(0, Ww²), whose correlation at lag l is `(W − l)/W`. The linear terms cancel; the
 * even part adds its lift above the line only if queries are positive, and its noise below the line always. Since e
 * is convex around zero, a window that holds several signal keys gains more than as many windows that hold one:
 * that is how the convolution favours local signal. The edges are counted in; what is left out is that the signal
 * block's own noise grows where e is steep, an error of order `(m + W)/B`.
 *
 * The paper (arXiv 2511.11571) finds the gain in trained models; this derivation is this package's own, tested against
 * simulation.
 *
 * @throws ArgumentError if `width`, `clusterSize` or `blockSize` is not an integer ≥ 1, the cluster does not fit the
 *   block, `weight` is not finite, or `amplitude` is not > 0.
 */
export function convolutionGain(options: ConvolutionGainOptions): number {
  const { width, weight, blockSize, amplitude, clusterSize } = options;
  checkInteger("width", width, 1);
  checkFinite("weight", weight);
  checkInteger("blockSize", blockSize, 1);
  checkPositive("amplitude", amplitude);
  checkInteger("clusterSize", clusterSize, 1);
  if (clusterSize > blockSize) {
    throw new ArgumentError("clusterSize", clusterSize, `at most blockSize = ${blockSize}`);
  }
  const deviation = Math.abs(weight) * Math.sqrt(width);
  const noiseMean = evenMean(0, deviation);
  let lift = clusterSize;
  for (const { keys, inside } of signalWindows(options)) {
    const even = evenMean(weight * keys * amplitude, deviation) - noiseMean;
    lift += inside * ((weight * keys) / 2 + (options.positive ? even / amplitude : 0));
  }
  const linearWeights = Array.from({ length: width }, (_, lag) => weight / 2 + (lag === 0 ? 1 : 0));
  let power = linearPower(linearWeights, blockSize);
  for (let lag = 1 - width; lag < width; lag++) {
    const correlation = (width - Math.abs(lag)) / width;
    power += Math.max(0, 1 - Math.abs(lag) / blockSize) * evenCovariance(deviation, correlation);
  }
  return lift / clusterSize / Math.sqrt(power);
}

/** The windows that hold signal: how many signal keys each holds, and how likely it ends inside the block. */
function signalWindows(options: ConvolutionGainOptions): { keys: number; inside: number }[] {
  const { width, clusterSize, blockSize, adjacent } = options;
  if (!adjacent) {
    const lags = Array.from({ length: width }, (_, lag) => Math.max(0, 1 - lag / blockSize));
    return lags.map((inside) => ({ keys: 1, inside: clusterSize * inside }));
  }
  const windows = clusterSize + width - 1;
  const places = blockSize - clusterSize + 1;
  return Array.from({ length: windows }, (_, t) => ({
    keys: Math.min(t + 1, width, clusterSize, windows - t),
    inside: Math.min(1, Math.max(0, (blockSize - t) / places)),
  }));
}

/** E[f(Z)] for standard normal Z, by the trapezoidal rule, which is exact to rounding for such smooth f. */
function gaussianMean(f: (z: number) => number): number {
  const step = 1 / 8;
  let sum = 0;
  for (let i = -72; i <= 72; i++) sum += f(i * step) * Math.exp(-0.5 * (i * step) ** 2);
  return (sum * step) / Math.sqrt(2 * Math.PI);
}

/** E[e(mean + deviation·Z)]. */
function evenMean(mean: number, deviation: number): number {
  return gaussianMean((z) => siluParts(mean + deviation * z).even);
}

/** Cov(e(deviation·X), e(deviation·Y)) for standard normal X, Y of the given correlation. */
function evenCovariance(deviation: number, correlation: number): number {
  const rest = Math.sqrt(1 - correlation * correlation);
  const product = gaussianMean(
    (x) => siluParts(deviation * x).even * evenMean(deviation * correlation * x, deviation * rest),
  );
  return product - evenMean(0, deviation) ** 2;
}

/**
 * A world whose keys pass through a map before they are scored, by which convolutions are simulated. Keys are handed
 * over at unit variance a component, as normalized keys have, and scaled back, which routing does not notice.
 */
export function transformKeys(world: World, transform: (keys: Float64Array) => Float64Array): World {
  return {
    ...world,
    draw(random) {
      const scene = world.draw(random);
      const scale = Math.sqrt(world.headDim);
      for (let i = 0; i < scene.keys.length; i++) scene.keys[i] *= scale;
      const keys = transform(scene.keys);
      for (let i = 0; i < keys.length; i++) keys[i] /= scale;
      return { ...scene, keys };
    },
  };
}

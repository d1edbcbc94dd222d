import {
  binomialInterval,
  effectiveSeparation,
  logNormalCdf,
  normalCdf,
  snr as signalToNoise,
} from "@moba-js/snr";

/** Coverage of the intervals that measured counts are judged by. */
export const LEVEL = 0.99;

/** One cell of a sweep. */
export interface Setting {
  /** `B`. */
  readonly blockSize: number;
  /** `m`, made-up words of a needle. */
  readonly needleWords: number;
}

/** What a model says of a cell: the probability of a hit, and the 99 % binomial interval of the number of hits. */
export interface Prediction {
  readonly probability: number;
  readonly low: number;
  readonly high: number;
}

/** The prediction for so many needles. */
export const predictionOf = (probability: number, needles: number): Prediction => ({
  probability,
  ...binomialInterval({ trials: needles, probability, level: LEVEL }),
});

/** The model's SNR: `m` words, each of `Δμ = 1/√m` with the query, their normalized sum. */
export function modelSnr({ blockSize, needleWords }: Setting, headDim: number): number {
  const separation = 1 / Math.sqrt(needleWords);
  const all = { separation, clusterSize: needleWords, clusterSeparation: separation };
  return signalToNoise({ headDim, blockSize, separation: effectiveSeparation(all) });
}

/** Variances of block scores, in units of the model's `1/(dB)`. */
export interface ScoreVariances {
  /** Of a noise block's score. */
  readonly noise: number;
  /** Of the needle's block's. */
  readonly signal: number;
}

/**
 * The variances with what the model leaves out. Noise blocks: as measured. The needle's block has `B − m` such keys, and its
 * needle adds not `m/d` to the variance of the sum but `(m−1)/(2d)`, that of `‖Σ w_i‖`: the query is made of its words.
 */
export const textVariances = ({ blockSize, needleWords }: Setting, noise: number): ScoreVariances => ({
  noise,
  signal: noise * (1 - needleWords / blockSize) + (needleWords - 1) / (2 * blockSize),
});

/** `P(Binomial(trials, 1 − Φ(x)) < limit)`, for a limit of a few. */
function fewExceed(x: number, trials: number, limit: number): number {
  const odds = normalCdf(-x) / normalCdf(x);
  let term = Math.exp(trials * logNormalCdf(x));
  let sum = 0;
  for (let exceeding = 0; exceeding < Math.min(limit, trials + 1); exceeding++) {
    sum += term;
    term *= ((trials - exceeding) / (exceeding + 1)) * odds;
  }
  return Math.min(1, sum);
}

/**
 * P(hit) when noise and signal blocks have variances of their own:
 * `E_z[ P( Binomial(n', 1 − Φ((√2·SNR + σ_s z)/σ_n)) < k ) ]`, `z ~ N(0,1)`; with both 1 it is `hitProbability`.
 */
export function hitProbabilityOf(
  snr: number,
  { noise, signal }: ScoreVariances,
  competitors: number,
  slots: number,
): number {
  const step = 0.05;
  let sum = 0;
  for (let z = -9; z <= 9; z += step) {
    const x = (Math.SQRT2 * snr + Math.sqrt(signal) * z) / Math.sqrt(noise);
    sum += Math.exp((-z * z) / 2) * fewExceed(x, competitors, slots);
  }
  return Math.min(1, (sum * step) / Math.sqrt(2 * Math.PI));
}

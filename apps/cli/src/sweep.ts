import { hitProbability } from "@moba-js/snr";
import type { Backend, Routing, Tensor } from "@moba-js/tensor";
import { type Directions, dot } from "./directions.js";
import { buildHaystack, type Haystack } from "./haystack.js";
import { percent } from "./output.js";
import {
  hitProbabilityOf,
  modelSnr,
  type Prediction,
  predictionOf,
  type Setting,
  textVariances,
} from "./prediction.js";
import { generator } from "./random.js";

/**
 * Factor of the scores when a cell attends: a softmax this sharp puts all weight on the strongest keys, so that a needle's
 * words hold the highest weight exactly when they hold more than half of it. (Not one of them: the two words of a needle
 * of two have the same product with their sum.)
 */
const SHARP = 2 ** 14;

/** The block sizes and needle lengths of a sweep: every pair is a cell. */
export interface Grid {
  readonly blockSizes: readonly number[];
  readonly needleWords: readonly number[];
}

/** What all cells of a sweep have in common. */
export interface SweepOptions {
  readonly seed: number;
  /** `k`. */
  readonly topK: number;
  /** Needles of each cell. */
  readonly needles: number;
  /** The haystack's length in words; a cell rounds it down to whole blocks. */
  readonly tokens: number;
}

/** How often a needle's word got the highest attention weight, out of all needles. */
export interface Retrieval {
  /** Attending the chosen blocks. */
  readonly routed: number;
  /** Attending everything. */
  readonly dense: number;
  /** The share of the keys that routed attention read, `kB/N`. */
  readonly keysRead: number;
}

/** What was predicted and measured in one cell. */
export interface Cell extends Setting {
  /** `N`. */
  readonly tokens: number;
  /** `n`. */
  readonly blocks: number;
  readonly needles: number;
  /** The model's signal-to-noise ratio (arXiv 2511.11571, section 3). */
  readonly snr: number;
  /** What follows from it. */
  readonly predicted: Prediction;
  /** Needles whose block was among the `k` best. */
  readonly hits: number;
  /** Whether `hits` lies in the prediction's interval. */
  readonly inside: boolean;
  /** Variance of the noise blocks' scores, measured, over the model's `1/(dB)`. 1 when keys are independent. */
  readonly varianceRatio: number;
  /** The prediction with the measured variance in the model's place: see {@link textVariances}. */
  readonly adjusted: Prediction;
  readonly retrieval: Retrieval;
}

/** All cells of a grid, by block size, then by needle length. */
export const settingsOf = ({ blockSizes, needleWords }: Grid): Setting[] =>
  blockSizes.flatMap((blockSize) => needleWords.map((words) => ({ blockSize, needleWords: words })));

/** The queries of needles, `[needles, d]`: the normalized sum of each one's word directions. */
function queriesOf({ needles }: Haystack, directions: Directions): Float32Array {
  const queries = new Float32Array(needles.length * directions.headDim);
  needles.forEach(({ words }, i) => {
    queries.set(directions.sum(words), i * directions.headDim);
  });
  return queries;
}

const ownBlocks = ({ needles }: Haystack, blockSize: number): number[] =>
  needles.map(({ position }) => Math.floor(position / blockSize));

const count = (flags: readonly boolean[]): number => flags.filter((flag) => flag).length;

/** For each needle, whether its block is among the chosen. */
async function findHits(routing: Routing, own: readonly number[]): Promise<boolean[]> {
  const indices = await routing.indices.data();
  const slots = routing.indices.shape[2];
  return own.map((block, i) => indices.subarray(i * slots, (i + 1) * slots).includes(block));
}

/**
 * The variance of noise blocks' scores `q·centroid` over the model's `1/(dB)`: over the blocks without the query's needle,
 * then averaged over queries. What is common to all blocks does not count, as it does not change their ranks.
 */
function noiseVarianceRatio(
  queries: Float32Array,
  centroids: Float32Array,
  own: readonly number[],
  headDim: number,
  blockSize: number,
): number {
  const blocks = centroids.length / headDim;
  let total = 0;
  own.forEach((ownBlock, i) => {
    const query = queries.subarray(i * headDim, (i + 1) * headDim);
    let sum = 0;
    let squares = 0;
    for (let block = 0; block < blocks; block++) {
      if (block === ownBlock) continue;
      const score = dot(query, centroids.subarray(block * headDim, (block + 1) * headDim));
      sum += score;
      squares += score * score;
    }
    const count = blocks - 1;
    total += (squares - (sum * sum) / count) / (count - 1);
  });
  return (total / own.length) * headDim * blockSize;
}

/**
 * For each needle, whether its words, if attended, get more than half of the attention. A key's weight follows from the
 * log-sum-exp that attention returns: `p = exp(scale·q·k − lse)`.
 */
async function outshines(
  lse: Tensor<"f32">,
  queries: Float32Array,
  { needles }: Haystack,
  directions: Directions,
): Promise<boolean[]> {
  const sums = await lse.data();
  const { headDim } = directions;
  return needles.map(({ words }, i) => {
    const query = queries.subarray(i * headDim, (i + 1) * headDim);
    const weights = words.map((word) => Math.exp(SHARP * dot(query, directions.of(word)) - sums[i]));
    return weights.reduce((sum, weight) => sum + weight) > 0.5;
  });
}

/**
 * Builds one cell's haystack and runs all its needles' queries over it.
 * @param words the text, at least as long as the haystack
 */
export async function measureCell(
  backend: Backend,
  words: readonly string[],
  directions: Directions,
  setting: Setting,
  options: SweepOptions,
): Promise<Cell> {
  const { blockSize, needleWords } = setting;
  const { headDim } = directions;
  const { seed, topK, needles } = options;
  const blocks = Math.floor(options.tokens / blockSize);
  const tokens = blocks * blockSize;
  const random = generator("haystack", seed, blockSize, needleWords);
  const haystack = buildHaystack(words, { tokens, blockSize, needles, needleWords }, random);
  const own = ownBlocks(haystack, blockSize);
  const queries = queriesOf(haystack, directions);

  using q = backend.tensor(queries, [needles, 1, headDim]);
  using k = backend.tensor(directions.rows(haystack.words), [tokens, 1, headDim]);
  using routing = backend.route(q, k, { blockSize, topK, causal: false });
  using centroids = backend.centroids(k, { blockSize });

  const snr = modelSnr(setting, headDim);
  const competitors = blocks - 1;
  const predicted = predictionOf(hitProbability({ snr, competitors, slots: topK }), needles);
  const hit = await findHits(routing, own);
  const hits = count(hit);
  const ratio = noiseVarianceRatio(queries, await centroids.data(), own, headDim, blockSize);

  const attended = backend.attend(q, k, k, routing, { scale: SHARP });
  using _routedOut = attended.out;
  using routedLse = attended.lse;
  const everything = backend.attention(q, k, k, { causal: false, scale: SHARP });
  using _denseOut = everything.out;
  using denseLse = everything.lse;
  const strongest = await outshines(routedLse, queries, haystack, directions);
  return {
    ...setting,
    tokens,
    blocks,
    needles,
    snr,
    predicted,
    hits,
    inside: predicted.low <= hits && hits <= predicted.high,
    varianceRatio: ratio,
    adjusted: predictionOf(hitProbabilityOf(snr, textVariances(setting, ratio), competitors, topK), needles),
    retrieval: {
      routed: count(strongest.map((best, i) => best && hit[i])),
      dense: count(await outshines(denseLse, queries, haystack, directions)),
      keysRead: Math.min(1, (topK * blockSize) / tokens),
    },
  };
}

/** Why a cell's hits lie outside the prediction's interval, from what was measured in its text. */
export function explain(cell: Cell): string {
  const { blockSize, needleWords, hits, needles, predicted, varianceRatio, adjusted } = cell;
  const explained = adjusted.low <= hits && hits <= adjusted.high;
  const verdict = explained
    ? "which covers the measurement"
    : "which does not explain it: what is left is chance (an exact model misses one cell in a hundred) or a finer effect";
  return (
    `B = ${blockSize}, m = ${needleWords}: ${hits} of ${needles} blocks found (${percent(hits / needles)}), ` +
    `${predicted.low} to ${predicted.high} predicted. The words of a text are not independent: in this one the scores of ` +
    `noise blocks vary ${varianceRatio.toFixed(2)} times as much as the model's. With that variance, and that of the ` +
    `needle's own words, the prediction is ${adjusted.low} to ${adjusted.high}, ${verdict}.`
  );
}

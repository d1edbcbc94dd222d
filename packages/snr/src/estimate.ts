import { ArgumentError, ShapeError } from "@moba-js/tensor";
import { checkInteger } from "./check.js";
import { hitProbability } from "./hit.js";
import { snr } from "./model.js";
import { confidenceInterval, type Estimate, JACKKNIFE_GROUPS, jackknife } from "./statistics.js";

/** A view of the packed vectors of one sequence: plain data and their shape, from any backend. */
export interface PackedView {
  /** Row-major data. */
  readonly data: Float32Array | Float64Array;
  /** `[tokens, heads, headDim]`. */
  readonly shape: readonly [number, number, number];
}

/** Queries and keys of one sequence, and what each query looks for. */
export interface SampleOptions {
  /** Queries `[Nq, H, d]`; query `i` sits at position `i + Nk − Nq`. */
  readonly queries: PackedView;
  /** Keys `[Nk, Hkv, d]`, as the router sees them: after the key convolution, if there is one. */
  readonly keys: PackedView;
  /** The query head to look at. Default 0. Its key head is `floor(head / (H/Hkv))`. */
  readonly head?: number;
  /** For each query the token of the key that answers it, or −1 if none does. Give this or `attention`. */
  readonly answers?: ArrayLike<number>;
  /** The head's attention weights, `[Nq, Nk]` row-major; the key of the highest weight answers. */
  readonly attention?: ArrayLike<number>;
}

/** How the sample is routed. */
export interface EstimateOptions extends SampleOptions {
  /** `B`. */
  readonly blockSize: number;
  /** `k`, blocks a query attends, its own included if causal. */
  readonly topK: number;
  /** Whether a query sees only its own and earlier blocks. Default true. */
  readonly causal?: boolean;
}

/** What a sample says of the model's parameters, and how well the model predicts its recall. */
export interface SnrEstimate {
  /** Queries that were used: their answer lies in a block that has to compete. */
  readonly queries: number;
  /** Queries whose answer lies in their own block, which is always attended: nothing to route. */
  readonly local: number;
  /** `μ_signal`, the mean product of queries with the keys that answer them. */
  readonly muSignal: Estimate;
  /** `μ_noise`, the mean product with the keys of the competing blocks. */
  readonly muNoise: Estimate;
  /** The variance of the products with noise keys, for one query; the model has 1/d. */
  readonly variance: Estimate;
  /** `Δμ`, in the model's units (see {@link estimateSnr}). */
  readonly separation: Estimate;
  /** `m`, how many signal-like keys the block of the answer holds, by two moments; 1 if no cluster can be told. */
  readonly clusterSize: Estimate;
  /** `μ_cluster − μ_noise`, in the model's units; 0 if no cluster can be told. */
  readonly clusterSeparation: Estimate;
  /** `Δμ_eff`, in the model's units, from the block's scores: it needs no guess about the cluster. */
  readonly effectiveSeparation: Estimate;
  /** The SNR by the closed form from `effectiveSeparation`, if keys of a block were independent. */
  readonly modelSnr: Estimate;
  /** The SNR of the block scores as they are: mean over deviation of the signal block's lead over noise blocks. */
  readonly empiricalSnr: Estimate;
  /** The mean `P(hit)` that `modelSnr` predicts for these queries. */
  readonly modelRecall: Estimate;
  /** The mean `P(hit)` that `empiricalSnr` predicts for these queries. */
  readonly predictedRecall: Estimate;
  /** The share of these queries whose answer's block the router really chooses. */
  readonly measuredRecall: Estimate;
}

// The sums that a group of queries keeps. Moments are of products standardized for their query.
const QUERIES = 0;
const SIGNAL_RAW = 1;
const NOISE_MEAN = 2;
const NOISE_VARIANCE = 3;
const SIGNAL = 4;
const REST = 5;
const REST_EXCESS = 6;
const PAIRS = 7;
const LEAD = 8;
const LEAD_SQUARED = 9;
const BLOCK_LIFT = 10;
const HITS = 11;
const SUMS = 12;

/** Fewer queries than two a group give no standard error worth the name. */
const LEAST_QUERIES = 2 * JACKKNIFE_GROUPS;

/** One routed query: the sums it adds, and the competition it faced. */
interface RoutedQuery {
  readonly sums: Float64Array;
  readonly competitors: number;
  readonly slots: number;
}

/**
 * Estimates the model's parameters from real queries and keys, with standard errors, and sets the recall they predict
 * beside the recall that routing gives.
 *
 * Real queries differ in length, which changes the scale of a query's products but not its routing, so products are first
 * standardized for each query by the mean and variance of its noise products. Separations are given in the model's
 * units, where that variance is 1/d, so they go straight into {@link snr} (arXiv 2511.11571, section 3).
 *
 * The cluster is told apart by moments: with standardized products p of the other keys of the signal's block,
 * `Σp = (m − 1)δ` and `Σ(p² − 1) = (m − 1)δ²` on average, so `δ` is their ratio. Where `Σp` does not exceed twice its
 * standard error, no cluster is reported. Standard errors are by jackknife over 20 groups of neighbouring queries; see
 * {@link confidenceInterval}.
 *
 * A gap between `modelSnr` and `empiricalSnr` says how far keys inside a block depend on each other.
 *
 * @throws ShapeError if the views do not fit each other; ArgumentError if `head`, `blockSize` or `topK` is out of range,
 *   not exactly one of `answers` and `attention` is given, an answer lies outside the keys, or fewer than 40 queries
 *   remain (with two or more noise keys and at least one noise block each).
 */
export function estimateSnr(options: EstimateOptions): SnrEstimate {
  const { blockSize } = options;
  const { sample, routed, local } = routeSample(options);
  if (routed.length < LEAST_QUERIES) {
    const reason = `at least ${LEAST_QUERIES} queries whose answer lies in a competing block, beside a noise block`;
    throw new ArgumentError("queries", routed.length, reason);
  }
  const groups = Array.from({ length: JACKKNIFE_GROUPS }, () => new Float64Array(SUMS));
  routed.forEach(({ sums }, i) => {
    addTo(groups[Math.floor((i * JACKKNIFE_GROUPS) / routed.length)], sums);
  });

  const unit = 1 / Math.sqrt(sample.headDim);
  const [excess] = jackknife(groups, (sums) => [sums[REST] / sums[QUERIES]]);
  const clustered = excess.value > 2 * excess.standardError;
  const estimates = jackknife(groups, (sums) => {
    const clusterLift = clustered ? sums[REST_EXCESS] / sums[REST] : 0;
    const separation = (unit * sums[BLOCK_LIFT]) / sums[QUERIES];
    return [
      sums[SIGNAL_RAW] / sums[QUERIES],
      sums[NOISE_MEAN] / sums[QUERIES],
      sums[NOISE_VARIANCE] / sums[QUERIES],
      (unit * sums[SIGNAL]) / sums[QUERIES],
      clustered ? 1 + sums[REST] / sums[QUERIES] / clusterLift : 1,
      unit * clusterLift,
      separation,
      snr({ headDim: sample.headDim, blockSize, separation }),
      snrOfSums(sums),
      sums[HITS] / sums[QUERIES],
    ];
  });
  const [muSignal, muNoise, variance, separation, clusterSize, clusterSeparation] = estimates;
  const [effectiveSeparation, modelSnr, empiricalSnr, measuredRecall] = estimates.slice(6);
  return {
    queries: routed.length,
    local,
    muSignal,
    muNoise,
    variance,
    separation,
    clusterSize,
    clusterSeparation,
    effectiveSeparation,
    modelSnr,
    empiricalSnr,
    modelRecall: recallOf(modelSnr, routed),
    predictedRecall: recallOf(empiricalSnr, routed),
    measuredRecall,
  };
}

/**
 * The empirical SNR of block scores alone; undefined where {@link estimateSnr} would find too few queries. Throws as it
 * does otherwise.
 */
export function empiricalSnr(options: EstimateOptions): number | undefined {
  const { routed } = routeSample(options);
  if (routed.length < LEAST_QUERIES) return undefined;
  const total = new Float64Array(SUMS);
  for (const { sums } of routed) addTo(total, sums);
  return snrOfSums(total);
}

function addTo(total: Float64Array, sums: Float64Array): void {
  for (let i = 0; i < SUMS; i++) total[i] += sums[i];
}

/** Mean over deviation of the signal block's lead. */
function snrOfSums(sums: Float64Array): number {
  const lead = sums[LEAD] / sums[PAIRS];
  return lead / Math.sqrt(sums[LEAD_SQUARED] / sums[PAIRS] - lead * lead);
}

/** Checks a sample and routes those of its queries that have an answer to compete for. */
function routeSample(options: EstimateOptions): { sample: Sample; routed: RoutedQuery[]; local: number } {
  checkInteger("blockSize", options.blockSize, 1);
  checkInteger("topK", options.topK, 1);
  const sample = new Sample(options);
  const routed: RoutedQuery[] = [];
  let local = 0;
  for (let query = 0; query < sample.queryCount; query++) {
    const answer = sample.answer(query);
    if (answer < 0) continue;
    const outcome = routeQuery(sample, query, answer, options);
    if (outcome === "local") local++;
    else if (outcome) routed.push(outcome);
  }
  return { sample, routed, local };
}

/** The mean hit probability of the queries at an estimated SNR; its error is that of the SNR, carried over. */
function recallOf(estimate: Estimate, routed: readonly RoutedQuery[]): Estimate {
  const counts = new Map<string, { competitors: number; slots: number; count: number }>();
  for (const { competitors, slots } of routed) {
    const key = `${competitors}/${slots}`;
    const entry = counts.get(key) ?? { competitors, slots, count: 0 };
    entry.count++;
    counts.set(key, entry);
  }
  const meanAt = (value: number) => {
    let sum = 0;
    for (const { count, ...problem } of counts.values())
      sum += count * hitProbability({ ...problem, snr: value });
    return sum / routed.length;
  };
  const { low, high } = confidenceInterval(estimate);
  const spread = (meanAt(high) - meanAt(low)) / (high - low);
  return { value: meanAt(estimate.value), standardError: spread * estimate.standardError };
}

/** The checked input: one head of queries and keys, and the answers. */
class Sample {
  readonly queryCount: number;
  readonly keyCount: number;
  readonly headDim: number;
  readonly #options: SampleOptions;
  readonly #head: number;
  readonly #keyHead: number;

  constructor(options: SampleOptions) {
    const { queries, keys, answers, attention, head = 0 } = options;
    const [queryCount, heads, headDim] = checkView("queries", queries);
    const [keyCount, keyHeads, keyDim] = checkView("keys", keys);
    if (keyDim !== headDim || heads % keyHeads !== 0 || queryCount > keyCount) {
      const expected = `[Nk, Hkv, ${headDim}] with Nk >= ${queryCount} and Hkv dividing ${heads}`;
      throw new ShapeError("keys", keys.shape, expected);
    }
    checkInteger("head", head, 0);
    if (head >= heads) throw new ArgumentError("head", head, `below the number of heads, ${heads}`);
    if ((answers === undefined) === (attention === undefined)) {
      const given = answers === undefined ? "neither" : "both";
      throw new ArgumentError("answers", given, "exactly one of answers and attention");
    }
    if (answers && answers.length !== queryCount) {
      throw new ShapeError("answers", [answers.length], `[${queryCount}]`);
    }
    if (attention && attention.length !== queryCount * keyCount) {
      throw new ShapeError("attention", [attention.length], `[${queryCount} · ${keyCount}]`);
    }
    this.queryCount = queryCount;
    this.keyCount = keyCount;
    this.headDim = headDim;
    this.#options = options;
    this.#head = head;
    this.#keyHead = Math.floor((head * keyHeads) / heads);
  }

  /** The token of the key that answers a query, or −1. */
  answer(query: number): number {
    const { answers, attention = [] } = this.#options;
    if (answers) {
      const answer = answers[query];
      checkInteger(`answers[${query}]`, answer, -1);
      if (answer >= this.keyCount) {
        throw new ArgumentError(`answers[${query}]`, answer, `below the number of keys, ${this.keyCount}`);
      }
      return answer;
    }
    let best = 0;
    const row = query * this.keyCount;
    for (let key = 1; key < this.keyCount; key++) {
      if (attention[row + key] > attention[row + best]) best = key;
    }
    return best;
  }

  /** The products of a query with the first `count` keys. */
  products(query: number, count: number): Float64Array {
    const { queries, keys } = this.#options;
    const d = this.headDim;
    const q = (query * queries.shape[1] + this.#head) * d;
    const products = new Float64Array(count);
    for (let key = 0; key < count; key++) {
      const k = (key * keys.shape[1] + this.#keyHead) * d;
      let product = 0;
      for (let c = 0; c < d; c++) product += queries.data[q + c] * keys.data[k + c];
      products[key] = product;
    }
    return products;
  }
}

/** Checks that a view's data fill its shape. */
function checkView(argument: string, { data, shape }: PackedView): readonly [number, number, number] {
  const [tokens, heads, headDim] = shape;
  if (shape.length !== 3 || !shape.every((size) => Number.isSafeInteger(size) && size >= 1)) {
    throw new ShapeError(argument, shape, "[tokens, heads, headDim], each >= 1");
  }
  if (data.length !== tokens * heads * headDim) {
    throw new ShapeError(argument, [data.length], `data of length ${tokens * heads * headDim}`);
  }
  return shape;
}

/** The mean of `values` from `from` to `to`. */
function meanOf(values: Float64Array, from: number, to: number): number {
  let sum = 0;
  for (let i = from; i < to; i++) sum += values[i];
  return sum / (to - from);
}

/** Routes one query and measures its products; undefined if there is no noise block to compare with. */
function routeQuery(
  sample: Sample,
  query: number,
  answer: number,
  { blockSize, topK, causal = true }: EstimateOptions,
): RoutedQuery | "local" | undefined {
  const position = query + sample.keyCount - sample.queryCount;
  const ownBlock = Math.floor(position / blockSize);
  const visible = causal ? ownBlock * blockSize : sample.keyCount;
  if (causal && answer > position) {
    throw new ArgumentError(`answers[${query}]`, answer, `at most the query's position, ${position}`);
  }
  if (answer >= visible) return "local";
  const blocks = Math.ceil(visible / blockSize);
  const start = Math.floor(answer / blockSize) * blockSize;
  const end = Math.min(start + blockSize, visible);
  if (blocks < 2 || visible - (end - start) < 2) return undefined;

  const products = sample.products(query, visible);
  const noiseCount = visible - (end - start);
  const noiseSum = meanOf(products, 0, visible) * visible - meanOf(products, start, end) * (end - start);
  const mean = noiseSum / noiseCount;
  let squares = 0;
  products.forEach((product, key) => {
    if (key < start || key >= end) squares += (product - mean) ** 2;
  });
  const variance = squares / (noiseCount - 1);
  const standardized = products.map((product) => (product - mean) / Math.sqrt(variance));

  const sums = new Float64Array(SUMS);
  sums[QUERIES] = 1;
  sums[SIGNAL_RAW] = products[answer];
  sums[NOISE_MEAN] = mean;
  sums[NOISE_VARIANCE] = variance;
  sums[SIGNAL] = standardized[answer];
  for (let key = start; key < end; key++) {
    if (key === answer) continue;
    sums[REST] += standardized[key];
    sums[REST_EXCESS] += standardized[key] ** 2 - 1;
  }
  const signalScore = meanOf(standardized, start, end);
  sums[BLOCK_LIFT] = signalScore * (end - start);
  let above = 0;
  for (let first = 0; first < visible; first += blockSize) {
    if (first === start) continue;
    const score = meanOf(standardized, first, Math.min(first + blockSize, visible));
    // Ties go to the lower block.
    if (score > signalScore || (score === signalScore && first < start)) above++;
    sums[PAIRS] += 1;
    sums[LEAD] += signalScore - score;
    sums[LEAD_SQUARED] += (signalScore - score) ** 2;
  }
  const slots = causal ? topK - 1 : topK;
  sums[HITS] = above < slots ? 1 : 0;
  return { sums, competitors: blocks - 1, slots };
}

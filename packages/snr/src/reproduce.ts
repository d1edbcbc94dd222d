import { binomialInterval } from "./binomial.js";
import {
  convolutionGain,
  convolveKeys,
  linearConvolution,
  linearConvolutionGain,
  transformKeys,
} from "./convolution.js";
import { hitProbability } from "./hit.js";
import { separationForRecall } from "./inverse.js";
import { snr } from "./model.js";
import { predict, type SimulationResult, simulate } from "./monte-carlo.js";
import { Random } from "./random.js";
import type { Estimate } from "./statistics.js";
import {
  commonMean,
  correlatedNoise,
  createWorld,
  heavyTails,
  repeatedWords,
  topicNoise,
  unequalNorms,
  type World,
  type WorldOptions,
} from "./worlds.js";

/** One random setting of the model's own world: predicted recall against counted hits. */
export interface AccuracyRow extends Pick<World, "headDim" | "blockSize" | "blocks"> {
  readonly clusterSize: number;
  readonly slots: number;
  readonly snr: number;
  readonly predicted: number;
  readonly measured: Estimate;
  readonly hits: number;
  readonly trials: number;
  /** Whether the count lies in the prediction's central 99 % binomial interval. */
  readonly inside: boolean;
}

/** The SNR of block scores at one head dimension and block size. */
export interface LawRow {
  readonly headDim: number;
  readonly blockSize: number;
  readonly predicted: number;
  readonly measured: Estimate;
}

/** Log-log slopes of the measured SNR. */
export interface LawSlopes {
  /** Against d/B, over all cells. The law says 1/2. */
  readonly ratio: Estimate;
  /** Against d, with B held fixed. The law says 1/2. */
  readonly headDim: Estimate;
  /** Against B, with d held fixed. The law says −1/2. */
  readonly blockSize: Estimate;
}

/** Recall at one block size, k·B held constant. */
export interface FixedComputeRow {
  readonly separation: number;
  readonly blockSize: number;
  readonly topK: number;
  readonly predicted: number;
  readonly measured: Estimate;
}

/** The SNR with a cluster of signal-like keys. */
export interface ClusteringRow {
  readonly clusterSize: number;
  /** `(μ_cluster − μ_noise) / Δμ`. */
  readonly strength: number;
  readonly predicted: number;
  readonly measured: Estimate;
}

/** What a linear convolution does to the SNR. */
export interface LinearConvolutionRow {
  readonly width: number;
  readonly blockSize: number;
  readonly predicted: number;
  readonly measured: Estimate;
}

/** Where a cluster's keys lie, and whether queries are positive codes. */
export type SignalKind = "local" | "scattered" | "signed";

/** What the key convolution does to the SNR. */
export interface ConvolutionRow {
  readonly kind: SignalKind;
  readonly width: number;
  readonly blockSize: number;
  readonly amplitude: number;
  readonly predicted: number;
  readonly measured: Estimate;
}

/** Recall with and without the key convolution. */
export interface AblationRow {
  readonly kind: SignalKind;
  /** The closed form for no convolution. */
  readonly predicted: number;
  /** Measured recall at widths 0, 3 and 5. */
  readonly measured: readonly [Estimate, Estimate, Estimate];
}

/** The closed form against a simulation of one world at one separation. */
export interface AssumptionOutcome {
  /** What the closed form predicts from the separation that was planted. */
  readonly predicted: number;
  readonly measured: SimulationResult;
  /** What the closed form predicts from the SNR that the block scores have. */
  readonly repaired: number;
}

/** How the closed form fares in a world that breaks an assumption. */
export interface AssumptionRow {
  readonly name: string;
  /** At a middling and at a high predicted recall. */
  readonly outcomes: readonly [AssumptionOutcome, AssumptionOutcome];
  /**
   * Whether the prediction holds at both (within 3 standard errors or 0.002), is too high at either, or is too low at
   * one and never too high.
   */
  readonly verdict: "holds" | "too low" | "too high";
}

/** Everything the reproduction report shows. */
export interface Reproduction {
  readonly seed: number;
  readonly accuracy: readonly AccuracyRow[];
  readonly law: readonly LawRow[];
  readonly slopes: LawSlopes;
  readonly fixedCompute: readonly FixedComputeRow[];
  readonly clustering: readonly ClusteringRow[];
  readonly linear: readonly LinearConvolutionRow[];
  readonly convolution: readonly ConvolutionRow[];
  readonly ablation: readonly AblationRow[];
  readonly assumptions: readonly AssumptionRow[];
}

/** Options of {@link reproduce}. */
export interface ReproduceOptions {
  /** The same seed gives the same numbers. Default 1. */
  readonly seed?: number;
  /** Told what comes next, and the share of the work that is done. */
  readonly onProgress?: (label: string, done: number) => void;
}

/**
 * Runs every experiment of the reproduction report by simulation, from scratch: about one minute on one core. The
 * claims under test are those of arXiv 2511.11571, section 3 and its appendix on the key convolution; the
 * assumption-breaking worlds and the analysis of the convolution's nonlinearity go beyond it.
 *
 * @throws ArgumentError if `seed` is not an integer ≥ 0.
 */
export function reproduce({ seed = 1, onProgress = () => {} }: ReproduceOptions = {}): Reproduction {
  onProgress("closed form against simulation", 0);
  const accuracy = measureAccuracy(seed);
  onProgress("the √(d/B) law", 0.14);
  const { law, slopes } = measureLaw(seed);
  onProgress("recall at fixed compute", 0.18);
  const fixedCompute = measureFixedCompute(seed);
  onProgress("the clustering multiplier", 0.26);
  const clustering = measureClustering(seed);
  onProgress("key convolution", 0.27);
  const linear = measureLinearConvolution(seed);
  const convolution = measureConvolution(seed);
  const ablation = measureAblation(seed);
  onProgress("broken assumptions", 0.89);
  const assumptions = measureAssumptions(seed);
  onProgress("done", 1);
  return {
    seed,
    accuracy,
    law,
    slopes,
    fixedCompute,
    clustering,
    linear,
    convolution,
    ablation,
    assumptions,
  };
}

function measureAccuracy(seed: number): AccuracyRow[] {
  const random = new Random(seed);
  const pick = <T>(choices: readonly T[]) => choices[random.integer(choices.length)];
  return Array.from({ length: 40 }, (_, i) => {
    const headDim = pick([32, 64, 128]);
    const blockSize = pick([16, 32, 64, 128, 256]);
    const mostBlocks = Math.min(512, 16384 / blockSize);
    const blocks = Math.round(8 * (mostBlocks / 8) ** random.uniform());
    const slots = 1 + random.integer(Math.min(16, blocks / 3));
    const clusterSize = 1 + random.integer(4);
    const competitors = blocks - 1;
    const chance = slots / blocks;
    const recall = chance + (0.99 - chance) * random.uniform();
    const effective = separationForRecall({ recall, competitors, slots, headDim, blockSize });
    const separation = effective / clusterSize;
    const world = createWorld({ blocks, blockSize, headDim, separation, clusterSize });
    const { snr, recall: predicted } = predict(world, slots);
    const { trials, recall: measured } = simulate(world, { slots, trials: 2000, seed: seed + i });
    const hits = Math.round(measured.value * trials);
    const { low, high } = binomialInterval({ trials, probability: predicted, level: 0.99 });
    const inside = low <= hits && hits <= high;
    return { headDim, blockSize, blocks, clusterSize, slots, snr, predicted, measured, hits, trials, inside };
  });
}

function measureLaw(seed: number): { law: LawRow[]; slopes: LawSlopes } {
  const law = [32, 64, 128, 256].flatMap((headDim) =>
    [16, 32, 64, 128, 256, 512].map((blockSize) => {
      const world = createWorld({ blocks: 8, blockSize, headDim, separation: 4 });
      const { empiricalSnr: measured } = simulate(world, { slots: 1, trials: 4000, seed });
      return { headDim, blockSize, predicted: snr(world), measured };
    }),
  );
  const slopeAgainst = (x: (row: LawRow) => number) =>
    logLogSlope(law.map((row) => ({ x: x(row), y: row.measured })));
  // The grid is full, so d and B vary independently and each slope can be fitted alone.
  const slopes = {
    ratio: slopeAgainst(({ headDim, blockSize }) => headDim / blockSize),
    headDim: slopeAgainst(({ headDim }) => headDim),
    blockSize: slopeAgainst(({ blockSize }) => blockSize),
  };
  return { law, slopes };
}

/** The least-squares slope of log y against log x; its error carries those of the y. */
export function logLogSlope(points: readonly { readonly x: number; readonly y: Estimate }[]): Estimate {
  const logs = points.map(({ x, y }) => ({ x: Math.log(x), y: Math.log(y.value) }));
  const mean = logs.reduce((sum, { x }) => sum + x, 0) / logs.length;
  const spread = logs.reduce((sum, { x }) => sum + (x - mean) ** 2, 0);
  const value = logs.reduce((sum, { x, y }) => sum + (x - mean) * y, 0) / spread;
  const variance = logs.reduce((sum, { x }, i) => {
    const { value, standardError } = points[i].y;
    return sum + (((x - mean) / spread) * (standardError / value)) ** 2;
  }, 0);
  return { value, standardError: Math.sqrt(variance) };
}

function measureFixedCompute(seed: number): FixedComputeRow[] {
  const tokens = 8192;
  const compute = 1024;
  return [2, 3, 4].flatMap((separation) =>
    [512, 256, 128, 64, 32, 16].map((blockSize) => {
      const topK = compute / blockSize;
      // The last query's own block takes a slot and does not compete.
      const world = createWorld({ blocks: tokens / blockSize - 1, blockSize, headDim: 64, separation });
      const slots = topK - 1;
      const { recall: predicted } = predict(world, slots);
      const { recall: measured } = simulate(world, { slots, trials: 1500, seed });
      return { separation, blockSize, topK, predicted, measured };
    }),
  );
}

function measureClustering(seed: number): ClusteringRow[] {
  const separation = 1;
  return [0.25, 0.5, 1].flatMap((strength) =>
    [1, 2, 4, 6, 8].map((clusterSize) => {
      const world = createWorld({
        blocks: 8,
        blockSize: 64,
        headDim: 64,
        separation,
        clusterSize,
        clusterSeparation: strength * separation,
      });
      const { empiricalSnr: measured } = simulate(world, { slots: 1, trials: 4000, seed });
      return { clusterSize, strength, predicted: snr(world), measured };
    }),
  );
}

function measureLinearConvolution(seed: number): LinearConvolutionRow[] {
  const headDim = 64;
  return [16, 64].flatMap((blockSize) =>
    [3, 5, 9].map((width) => {
      // A weak signal: a strong one's place in the block would show in the deviation.
      const separation = 0.1 * Math.sqrt(blockSize);
      const world = createWorld({ blocks: 32, blockSize, headDim, separation });
      const weights = new Float64Array(width * headDim).fill(1 / width);
      const convolved = transformKeys(world, (keys) => linearConvolution({ keys, headDim, weights }));
      const { empiricalSnr } = simulate(convolved, { slots: 1, trials: 320_000 / blockSize, seed });
      return {
        width,
        blockSize,
        predicted: linearConvolutionGain({ weights: new Array(width).fill(1 / width), blockSize }),
        measured: relativeTo(empiricalSnr, snr(world)),
      };
    }),
  );
}

/** An estimate in units of a known number. */
function relativeTo({ value, standardError }: Estimate, unit: number): Estimate {
  return { value: value / unit, standardError: standardError / unit };
}

const KINDS: readonly SignalKind[] = ["local", "scattered", "signed"];
const CODE = { headDim: 64, active: 8, clusterSize: 4, weight: 1 };

/** A world of sparse codes for the key convolution; `amplitude` as in convolutionGain. */
function codeWorld(kind: SignalKind, amplitude: number, shape: { blocks: number; blockSize: number }): World {
  const { headDim, active, clusterSize } = CODE;
  return createWorld({
    ...shape,
    headDim,
    separation: amplitude * Math.sqrt(active / headDim),
    clusterSize,
    adjacent: kind !== "scattered",
    codes: { active, signed: kind === "signed" },
  });
}

/** A world whose keys pass the key convolution; width 0 is none. */
function convolvedWorld(world: World, width: number): World {
  if (width === 0) return world;
  const { headDim } = world;
  const weights = new Float64Array(width * headDim).fill(CODE.weight);
  return transformKeys(world, (keys) => convolveKeys({ keys, headDim, weights }));
}

function measureConvolution(seed: number): ConvolutionRow[] {
  const measure = (kind: SignalKind, width: number, amplitude: number, blockSize: number): ConvolutionRow => {
    // A weak signal needs many trials, so it gets small blocks.
    const trials = blockSize === 32 ? 60_000 : 5000;
    const world = codeWorld(kind, amplitude, { blocks: 2, blockSize });
    const { empiricalSnr } = simulate(convolvedWorld(world, width), { slots: 1, trials, seed });
    const predicted = predictedConvolutionGain({ kind, width, amplitude, blockSize });
    const measured = relativeTo(empiricalSnr, snr(world));
    return { kind, width, amplitude, blockSize, predicted, measured };
  };
  const strong = KINDS.flatMap((kind) =>
    [3, 5].flatMap((width) => [0.5, 1, 1.5, 2].map((amplitude) => measure(kind, width, amplitude, 128))),
  );
  return [...strong, measure("local", 5, 0.25, 32), measure("scattered", 5, 0.25, 32)];
}

/** The theory's gain for the codes of the convolution experiment. */
export function predictedConvolutionGain({
  kind,
  ...setting
}: Pick<ConvolutionRow, "kind" | "width" | "amplitude" | "blockSize">): number {
  const { weight, clusterSize } = CODE;
  const place = { adjacent: kind !== "scattered", positive: kind !== "signed" };
  return convolutionGain({ ...setting, ...place, weight, clusterSize });
}

function measureAblation(seed: number): AblationRow[] {
  const slots = 4;
  return KINDS.map((kind) => {
    const world = codeWorld(kind, 1, { blocks: 32, blockSize: 64 });
    const recallAt = (width: number) =>
      simulate(convolvedWorld(world, width), { slots, trials: 2000, seed }).recall;
    return {
      kind,
      predicted: predict(world, slots).recall,
      measured: [recallAt(0), recallAt(3), recallAt(5)],
    };
  });
}

/** The worlds that break one assumption each; the first breaks none. */
const ASSUMPTIONS: readonly (readonly [string, Partial<WorldOptions>])[] = [
  ["the model's own world", {}],
  ["a common mean of length 1", { noise: commonMean(1) }],
  ["repeated words (Zipf)", { noise: repeatedWords({ vocabulary: 2000, exponent: 1, burstiness: 0 }) }],
  ["words that come in bursts", { noise: repeatedWords({ vocabulary: 2000, exponent: 1, burstiness: 0.5 }) }],
  ["correlated neighbours, ρ = 0.5", { noise: correlatedNoise(0.5) }],
  ["a topic per block, 5 % of the variance", { noise: topicNoise(0.05) }],
  ["heavy tails (Student t, 3 degrees)", { noise: heavyTails(3) }],
  ["unequal norms of keys (log-normal, 0.5)", { noise: unequalNorms(0.5) }],
  ["unequal norms of blocks (log-normal, 0.5)", { noise: unequalNorms(0.5, { perBlock: true }) }],
  ["signal split over two blocks", { needleShares: [0.5, 0.5] }],
  ["three needles", { needleShares: [1, 1, 1] }],
];

function measureAssumptions(seed: number): AssumptionRow[] {
  const slots = 4;
  return ASSUMPTIONS.map(([name, broken]) => {
    const outcomeAt = (separation: number): AssumptionOutcome => {
      const world = createWorld({ blocks: 64, blockSize: 64, headDim: 64, separation, ...broken });
      const measured = simulate(world, { slots, trials: 10_000, seed });
      const repaired = hitProbability({ snr: measured.empiricalSnr.value, competitors: 63, slots });
      return { predicted: predict(world, slots).recall, measured, repaired };
    };
    const outcomes = [outcomeAt(2.4), outcomeAt(4.4)] as const;
    return { name, outcomes, verdict: judge(outcomes) };
  });
}

function judge(outcomes: AssumptionRow["outcomes"]): AssumptionRow["verdict"] {
  const off = outcomes.map(({ predicted, measured: { recall } }) => {
    const difference = recall.value - predicted;
    return Math.abs(difference) <= Math.max(0.002, 3 * recall.standardError) ? 0 : difference;
  });
  if (off.some((difference) => difference < 0)) return "too high";
  return off.some((difference) => difference > 0) ? "too low" : "holds";
}

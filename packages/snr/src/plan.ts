import { ArgumentError } from "@moba-js/tensor";
import { checkInteger, checkOpenProbability, checkPositive } from "./check.js";
import { convolveKeys } from "./convolution.js";
import {
  type CostCoefficients,
  countDenseWork,
  countWork,
  type MobaConfiguration,
  NOMINAL_COST,
  predictSeconds,
  type Work,
  type WorkOptions,
} from "./cost.js";
import { empiricalSnr, type SampleOptions } from "./estimate.js";
import { hitProbability } from "./hit.js";
import { slotsForRecall } from "./inverse.js";
import { snr } from "./model.js";

/** The effective separation that keys have after a convolution of some width. */
export interface WidthSeparation {
  /** `W`; 0 for no convolution. */
  readonly width: number;
  /** `Δμ_eff`. */
  readonly separation: number;
}

/** Real queries and keys to plan for, before any key convolution, and the convolutions to consider. */
export interface PlanSamples extends SampleOptions {
  /** Convolutions, each by its weights `[W, Hkv, d]` row-major. Default: none; no convolution is always considered. */
  readonly convolutions?: readonly { readonly width: number; readonly weights: ArrayLike<number> }[];
}

/** What to plan for. */
export interface PlanOptions extends WorkOptions {
  /** The wanted probability that the block of the signal is attended, for a query at the end of the context. */
  readonly targetRecall: number;
  /** `Δμ_eff`, or one for each convolution width to consider. Give this or `samples`. */
  readonly separation?: number | readonly WidthSeparation[];
  /** Real queries and keys, from which the SNR is measured at each block size and width. */
  readonly samples?: PlanSamples;
  /** What work costs. Default {@link NOMINAL_COST}. */
  readonly cost?: CostCoefficients;
  /** Block sizes to consider, of those that leave at least 3 blocks. Default: the powers of two from 16 to 512. */
  readonly blockSizes?: readonly number[];
}

/** One way to reach the target. */
export interface PlanEntry extends MobaConfiguration {
  /** The SNR of the router. */
  readonly snr: number;
  /** P(hit) for a query in the last block. */
  readonly recall: number;
  /** What a forward pass does. */
  readonly work: Work;
  /** What the cost model says it takes. */
  readonly seconds: number;
}

/** A ranked plan. */
export interface Plan {
  /** Block size, width and the smallest sufficient top-k of each candidate, the cheapest first. */
  readonly entries: readonly PlanEntry[];
  /** Recall against cost of each block size and width as k grows, for charts. */
  readonly curves: readonly (readonly PlanEntry[])[];
  /** What dense attention would take. */
  readonly denseSeconds: number;
  /** What was asked. */
  readonly options: PlanOptions;
}

/** The SNR of the router at a block size, for one convolution width; undefined where samples are too short to tell. */
interface Router {
  readonly width: number;
  readonly snrAt: (blockSize: number) => number | undefined;
}

/**
 * Ranks configurations `(B, k, W)` that reach a target recall by their cost.
 *
 * The recall is P(hit) of {@link hitProbability} for the query that has it hardest, in the last block: own block
 * `c = n − 1`, so `n − 2` noise blocks compete for the `k − 1` slots that the own block leaves. For each block size and
 * width the smallest sufficient `k` is taken (`k = n` always suffices: it is dense attention), then all are sorted by
 * predicted seconds.
 *
 * @throws ArgumentError if a size is not an integer ≥ 1, `targetRecall` is not strictly between 0 and 1, not exactly one
 *   of `separation` and `samples` is given, a separation is not > 0 (the message says what then remains), or no block size
 *   is left to consider: too short a context, or too few samples. What `estimateSnr` throws for bad samples.
 */
export function plan(options: PlanOptions): Plan {
  const { tokens, targetRecall, cost = NOMINAL_COST } = options;
  checkInteger("tokens", tokens, 1);
  checkOpenProbability("targetRecall", targetRecall);
  const blockSizes = options.blockSizes ?? [16, 32, 64, 128, 256, 512];
  for (const blockSize of blockSizes) checkInteger("blockSizes", blockSize, 1);
  const usable = blockSizes.filter((size) => Math.ceil(tokens / size) >= 3);
  if (usable.length === 0) {
    const reason = "a context of at least 3 blocks: in a shorter one every block can be attended";
    throw new ArgumentError("tokens", tokens, reason);
  }
  const entries: PlanEntry[] = [];
  const curves: PlanEntry[][] = [];
  for (const { width, snrAt } of routersOf(options)) {
    for (const blockSize of usable) {
      const value = snrAt(blockSize);
      if (value === undefined) continue;
      const competitors = Math.ceil(tokens / blockSize) - 2;
      const entryAt = (slots: number): PlanEntry => {
        const configuration = { blockSize, topK: slots + 1, width };
        const work = countWork({ ...options, ...configuration });
        const recall = hitProbability({ snr: value, competitors, slots });
        return { ...configuration, snr: value, recall, work, seconds: predictSeconds(work, cost) };
      };
      entries.push(entryAt(slotsForRecall({ recall: targetRecall, competitors, snr: value })));
      const curve: PlanEntry[] = [];
      for (let slots = 1; slots <= competitors; slots = Math.ceil(slots * 1.5)) curve.push(entryAt(slots));
      curves.push([...curve, entryAt(competitors + 1)]);
    }
  }
  if (entries.length === 0) {
    const reason = "40 queries whose answers lie in blocks of their own, at one block size or more";
    throw new ArgumentError("samples.queries", options.samples?.queries.shape[0], reason);
  }
  entries.sort((a, b) => a.seconds - b.seconds);
  return { entries, curves, denseSeconds: predictSeconds(countDenseWork(options), cost), options };
}

/** The routers that the options describe, one a width. */
function routersOf({ headDim, separation, samples }: PlanOptions): Router[] {
  if ((separation === undefined) === (samples === undefined)) {
    const given = separation === undefined ? "neither" : "both";
    throw new ArgumentError("separation", given, "exactly one of separation and samples");
  }
  if (samples) return sampleRouters(samples);
  const widths = typeof separation === "number" ? [{ width: 0, separation }] : separation!;
  if (widths.length === 0) throw new ArgumentError("separation", widths, "at least one width");
  return widths.map(({ width, separation }) => {
    checkInteger("width", width, 0);
    if (!(separation > 0)) {
      const reason = "a number > 0: without separation only dense attention is sure to reach targetRecall";
      throw new ArgumentError("separation", separation, reason);
    }
    checkPositive("separation", separation);
    return { width, snrAt: (blockSize) => snr({ headDim, blockSize, separation }) };
  });
}

/** Routers that measure their SNR on the samples: at each block size anew, so that no scaling law is assumed. */
function sampleRouters({ convolutions = [], ...sample }: PlanSamples): Router[] {
  const [, heads, headDim] = sample.keys.shape;
  const convolved = convolutions.map(({ width, weights }) => {
    checkInteger("convolutions.width", width, 1);
    if (weights.length !== width * heads * headDim) {
      const reason = `[${width}, ${heads}, ${headDim}], ${width * heads * headDim} numbers`;
      throw new ArgumentError("convolutions.weights", weights.length, reason);
    }
    // Depthwise, so all heads together are one row of heads · headDim components.
    const data = convolveKeys({ keys: sample.keys.data, headDim: heads * headDim, weights });
    return { width, keys: { data, shape: sample.keys.shape } };
  });
  return [{ width: 0, keys: sample.keys }, ...convolved].map(({ width, keys }) => ({
    width,
    snrAt: (blockSize) => empiricalSnr({ ...sample, keys, blockSize, topK: 1 }),
  }));
}

import { checkInteger } from "./check.js";
import { hitProbability } from "./hit.js";
import { snr } from "./model.js";
import { Random } from "./random.js";
import { type Estimate, JACKKNIFE_GROUPS, jackknife } from "./statistics.js";
import type { Scene, World } from "./worlds.js";

/** What routing did in the contexts simulated so far. */
export interface SimulationResult {
  /** Queries routed so far. */
  readonly trials: number;
  /** The share of needles whose block was among the chosen. With one needle a query, the hit rate. */
  readonly recall: Estimate;
  /** The share of queries for which at least one needle's block was chosen. */
  readonly any: Estimate;
  /** The share of queries for which every needle's block was chosen. */
  readonly all: Estimate;
  /**
   * The mean difference between a needle block's score and a noise block's, over the deviation of that difference.
   * NaN if every block holds a needle.
   */
  readonly empiricalSnr: Estimate;
}

/** How routing is simulated. */
export interface SimulationOptions {
  /** How many blocks are chosen; every block of the world competes. */
  readonly slots: number;
  /** Seed of the random contexts, an integer ≥ 0. */
  readonly seed: number;
}

// The sums that a group of contexts keeps.
const TRIALS = 0;
const FOUND = 1;
const ANY = 2;
const ALL = 3;
const PAIRS = 4;
const GAP = 5;
const GAP_SQUARED = 6;
const SUMS = 7;

/** The scores of all blocks for all queries, `q · centroid`, `[queries, blocks]`: MoBA's router. */
function blockScores({ keys, queries }: Scene, { blocks, blockSize, headDim }: World): Float64Array {
  const sums = new Float64Array(blocks * headDim);
  for (let token = 0; token < blocks * blockSize; token++) {
    const block = Math.floor(token / blockSize) * headDim;
    for (let c = 0; c < headDim; c++) sums[block + c] += keys[token * headDim + c];
  }
  const count = queries.length / headDim;
  const scores = new Float64Array(count * blocks);
  for (let query = 0; query < count; query++) {
    for (let block = 0; block < blocks; block++) {
      let score = 0;
      for (let c = 0; c < headDim; c++) score += queries[query * headDim + c] * sums[block * headDim + c];
      scores[query * blocks + block] = score / blockSize;
    }
  }
  return scores;
}

/** Routes every query of a scene and adds the outcome to `sums`. */
function tally(scene: Scene, world: World, slots: number, sums: Float64Array): void {
  const { blocks, needlesPerQuery } = world;
  const scores = blockScores(scene, world);
  for (let query = 0; query < scores.length / blocks; query++) {
    const row = scores.subarray(query * blocks, (query + 1) * blocks);
    const tokens = scene.needles.subarray(query * needlesPerQuery, (query + 1) * needlesPerQuery);
    const needleBlocks = Array.from(tokens, (token) => Math.floor(token / world.blockSize));
    let found = 0;
    for (const needle of needleBlocks) {
      let above = 0;
      for (let block = 0; block < blocks; block++) {
        const gap = row[needle] - row[block];
        if (gap < 0) above++;
        if (needleBlocks.includes(block)) continue;
        sums[PAIRS] += 1;
        sums[GAP] += gap;
        sums[GAP_SQUARED] += gap * gap;
      }
      if (above < slots) found++;
    }
    sums[TRIALS] += 1;
    sums[FOUND] += found / needlesPerQuery;
    sums[ANY] += found > 0 ? 1 : 0;
    sums[ALL] += found === needlesPerQuery ? 1 : 0;
  }
}

function statistics(sums: Float64Array): number[] {
  const trials = sums[TRIALS];
  const gap = sums[GAP] / sums[PAIRS];
  const deviation = Math.sqrt(sums[GAP_SQUARED] / sums[PAIRS] - gap * gap);
  return [sums[FOUND] / trials, sums[ANY] / trials, sums[ALL] / trials, gap / deviation];
}

/**
 * Simulates routing without end: each step draws one context of the world, scores the means of its blocks against its
 * queries, chooses the best `slots`, and yields the results so far. Memory stays constant. Standard errors are by
 * jackknife over contexts, dealt in turn into 20 groups, and NaN until every group has one.
 *
 * @throws ArgumentError if `slots` or `seed` is not an integer ≥ 0.
 */
export function* simulateStream(
  world: World,
  { slots, seed }: SimulationOptions,
): Generator<SimulationResult, never, void> {
  checkInteger("slots", slots, 0);
  const random = new Random(seed);
  const groups = Array.from({ length: JACKKNIFE_GROUPS }, () => new Float64Array(SUMS));
  for (let context = 0; ; context++) {
    tally(world.draw(random), world, slots, groups[context % groups.length]);
    const [recall, any, all, empiricalSnr] = jackknife(groups, statistics).map((estimate) =>
      context + 1 < groups.length ? { ...estimate, standardError: Number.NaN } : estimate,
    );
    const trials = groups.reduce((sum, group) => sum + group[TRIALS], 0);
    yield { trials, recall, any, all, empiricalSnr };
  }
}

/**
 * Simulates routing for at least `trials` queries (and at least 20 contexts, so that there are standard errors); see
 * {@link simulateStream}. In the model's own world the trials are independent, so the count of hits,
 * `recall.value · trials`, is binomial.
 *
 * @throws ArgumentError if `slots` or `seed` is not an integer ≥ 0, or `trials` is not an integer ≥ 1.
 */
export function simulate(
  world: World,
  { trials, ...options }: SimulationOptions & { readonly trials: number },
): SimulationResult {
  checkInteger("trials", trials, 1);
  const stream = simulateStream(world, options);
  let result = stream.next().value;
  while (result.trials < trials || Number.isNaN(result.recall.standardError)) result = stream.next().value;
  return result;
}

/** What the closed forms say of a world: its SNR, and the hit probability of one whole needle among noise blocks. */
export function predict(world: World, slots: number): { readonly snr: number; readonly recall: number } {
  const value = snr(world);
  return { snr: value, recall: hitProbability({ snr: value, competitors: world.blocks - 1, slots }) };
}

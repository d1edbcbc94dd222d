import { ArgumentError } from "@moba-js/tensor";
import { checkFinite, checkInteger, checkPositive } from "./check.js";
import { normalCdf, normalQuantile } from "./normal.js";

/** What the signal-to-noise ratio of a router depends on. */
export interface SnrOptions {
  /** `d`, the head dimension. The model takes the products of queries and noise keys to have variance 1/d. */
  readonly headDim: number;
  /** `B`, the number of keys in a block. */
  readonly blockSize: number;
  /** `Δμ_eff`, how far the signal lifts the sum of a block's products (see {@link effectiveSeparation}). */
  readonly separation: number;
}

/**
 * The signal-to-noise ratio of block routing, `SNR = Δμ_eff · √(d / (2B))`.
 *
 * A block's score is the mean of its `B` products with the query; against one noise block the difference has mean
 * `Δμ_eff / B` and variance `2 / (dB)`, and the SNR is their ratio in standard deviations. Source: Optimizing
 * Mixture of Block Attention (arXiv 2511.11571), section 3, the statistical model.
 *
 * @throws ArgumentError if `headDim` or `blockSize` is not > 0, or `separation` is not finite.
 */
export function snr({ headDim, blockSize, separation }: SnrOptions): number {
  checkPositive("headDim", headDim);
  checkPositive("blockSize", blockSize);
  checkFinite("separation", separation);
  return separation * Math.sqrt(headDim / (2 * blockSize));
}

/** The parts of an effective separation. */
export interface EffectiveSeparationOptions {
  /** `Δμ = μ_signal − μ_noise`, the lift of the signal key alone. */
  readonly separation: number;
  /** `m`, how many signal-like keys the block holds, the signal key included. */
  readonly clusterSize: number;
  /** `μ_cluster − μ_noise`, the lift of each of the other `m − 1`. */
  readonly clusterSeparation: number;
}

/**
 * The effective separation of a block with a cluster of signal-like keys,
 * `Δμ_eff = Δμ + (m − 1)(μ_cluster − μ_noise)`. Source: arXiv 2511.11571, section 3 (clustering).
 *
 * @throws ArgumentError if `clusterSize` is not at least 1 (it may be an average, so it need not be an integer), or
 *   a separation is not finite.
 */
export function effectiveSeparation({
  separation,
  clusterSize,
  clusterSeparation,
}: EffectiveSeparationOptions): number {
  checkFinite("separation", separation);
  checkFinite("clusterSeparation", clusterSeparation);
  if (!(clusterSize >= 1 && clusterSize < Infinity)) {
    throw new ArgumentError("clusterSize", clusterSize, "a finite number >= 1");
  }
  return separation + (clusterSize - 1) * clusterSeparation;
}

/**
 * The probability that one given noise block outranks the signal block, `Φ(−SNR)`. Source: arXiv 2511.11571,
 * section 3. Accurate in relative terms however small it is.
 */
export function pairwiseFailure(snr: number): number {
  return normalCdf(-snr);
}

/** A routing problem as the paper's condition sees it. */
export interface TopKOptions {
  /** `n`, the number of blocks that compete. */
  readonly blocks: number;
  /** `k`, the number of them that are chosen. */
  readonly topK: number;
}

/**
 * The paper's condition for finding the signal block, as an SNR: `Φ⁻¹(1 − k/n)`, above which fewer than `k` of `n`
 * noise blocks are expected to outrank it. It is a rule of thumb: at exactly this SNR the exact `hitProbability` is
 * 0.64 for 2 of 16 blocks and 0.81 for 8 of 512. Source: arXiv 2511.11571, section 3.
 *
 * @returns −Infinity if `topK ≥ blocks`: everything is chosen.
 * @throws ArgumentError if `blocks` or `topK` is not an integer ≥ 1.
 */
export function requiredSnr({ blocks, topK }: TopKOptions): number {
  checkInteger("blocks", blocks, 1);
  checkInteger("topK", topK, 1);
  return topK >= blocks ? -Infinity : -normalQuantile(topK / blocks);
}

/**
 * Whether a given SNR satisfies the paper's condition `SNR > Φ⁻¹(1 − k/n)`, see {@link requiredSnr}.
 *
 * @throws ArgumentError if `blocks` or `topK` is not an integer ≥ 1.
 */
export function meetsTopKCondition({ snr, blocks, topK }: TopKOptions & { readonly snr: number }): boolean {
  return snr > requiredSnr({ blocks, topK });
}

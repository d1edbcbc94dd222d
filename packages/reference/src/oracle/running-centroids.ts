import type { CuSeqlens } from "@moba-js/tensor";

/** New keys for running block means, in float64. */
export interface RunningCentroidInputs {
  /** `[blocks, Hkv, d]`: changed. */
  readonly centroids: Float64Array;
  /** New keys, `[T, Hkv, d]`. */
  readonly k: Float64Array;
  /** `Hkv·d` */
  readonly channels: number;
  /** Where each sequence's new keys begin. */
  readonly cuSeqlens: CuSeqlens;
  /** Where each sequence's centroids begin. */
  readonly cuCentroids: CuSeqlens;
  /** The position of each sequence's first new key. */
  readonly offsets: readonly number[];
  /** `B`. */
  readonly blockSize: number;
}

/**
 * Running block means, in place: the key at position `t`, the `c`-th of its block (`c = t mod B + 1`), gives
 * `centroid_j ← centroid_j + (k_t − centroid_j) / c`, `j = floor(t/B)`.
 */
export function updateCentroids(inputs: RunningCentroidInputs): void {
  const { centroids, k, channels, cuSeqlens, cuCentroids, offsets, blockSize } = inputs;
  offsets.forEach((offset, s) => {
    for (let key = cuSeqlens[s]; key < cuSeqlens[s + 1]; key++) {
      const t = offset + key - cuSeqlens[s];
      const at = (cuCentroids[s] + Math.floor(t / blockSize)) * channels;
      const count = (t % blockSize) + 1;
      for (let c = 0; c < channels; c++) {
        // The first key of a block takes no notice of what was there before it, NaN included.
        const before = count === 1 ? 0 : centroids[at + c];
        centroids[at + c] = before + (k[key * channels + c] - before) / count;
      }
    }
  });
}

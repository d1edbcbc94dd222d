import { blockCount, type CuSeqlens, cuBlocks, sequenceLengths } from "@moba-js/tensor";

/** Keys to take block means of. */
export interface CentroidInputs {
  /** `[Tk, Hkv, d]` */
  readonly k: Float64Array;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Where each sequence's keys begin. */
  readonly cuSeqlens: CuSeqlens;
  /** `B`. */
  readonly blockSize: number;
}

/**
 * Block centroids (arXiv 2511.11571, section 2): the mean of each block's real keys, the last block of a sequence
 * being possibly short.
 * @returns `[blocks, Hkv, d]`, the blocks of all sequences in a row
 */
export function centroids({ k, kvHeads, headDim, cuSeqlens, blockSize }: CentroidInputs): Float64Array {
  const firstBlocks = cuBlocks(cuSeqlens, blockSize);
  const width = kvHeads * headDim;
  const result = new Float64Array(firstBlocks[firstBlocks.length - 1] * width);
  sequenceLengths(cuSeqlens).forEach((length, s) => {
    for (let j = 0; j < blockCount(length, blockSize); j++) {
      const begin = j * blockSize;
      const end = Math.min(begin + blockSize, length);
      const at = (firstBlocks[s] + j) * width;
      for (let t = begin; t < end; t++) {
        for (let c = 0; c < width; c++) result[at + c] += k[(cuSeqlens[s] + t) * width + c];
      }
      for (let c = 0; c < width; c++) result[at + c] /= end - begin;
    }
  });
  return result;
}

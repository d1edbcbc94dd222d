import { bytesPerElement, type FloatDType } from "@moba-js/tensor";

export const ceilDiv = (a: number, b: number): number => Math.ceil(a / b);

/**
 * The end of a kernel's name: kernels move 16 bytes at a time where rows are multiples of that, else one
 * element.
 */
export const rowSuffix = (dtype: FloatDType, rowElements: number): string =>
  (rowElements * bytesPerElement(dtype)) % 16 === 0 ? dtype : `${dtype}_scalar`;

/** Elements that the kernel with that name moves at a time. */
export const packetElements = (dtype: FloatDType, rowElements: number): number =>
  (rowElements * bytesPerElement(dtype)) % 16 === 0 ? 16 / bytesPerElement(dtype) : 1;

/** Shared memory of a `ScoreTile` (score_tile.cuh) and of 32 floats for each of its 64 queries. */
export function scoreTileBytes(headDim: number): number {
  const stride = ceilDiv(Math.min(headDim, 128), 32) * 32 + 4;
  return 4 * ((64 + 32) * stride + 64 * 32);
}

/** Columns of an output row that one CTA of a plain attention kernel takes. */
export const SLAB = 128;

/** A query sees this many keys at most: the `window` of kernels that know windows, where there is none. */
export const NO_WINDOW = 2 ** 30;

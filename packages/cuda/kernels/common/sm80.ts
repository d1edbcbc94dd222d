import type { FloatDType } from "@moba-js/tensor";
import type { Device } from "../../src/device.js";

/** Head dimensions that the kernels `sm80_…` are made for. */
const HEAD_DIMS = [32, 64, 96, 128, 256];

/** Whether the portable kernels for tensor cores are allowed and made for such elements and rows. */
export const tensorCores = (
  { path }: Device,
  { dtype, headDim }: { readonly dtype: FloatDType; readonly headDim: number },
): boolean => path !== "plain" && dtype !== "f32" && HEAD_DIMS.includes(headDim);

/** Queries that a CTA of `sm80_dense` or `sm80_attend` takes at once. */
export const queriesAtOnce = (headDim: number): number => (headDim === 256 ? 64 : 128);

/** Shared memory of such a CTA: its queries, and half as many keys and values. */
export const attentionBytes = (headDim: number): number => 2 * headDim * 2 * queriesAtOnce(headDim);

/**
 * The scale of scores as those kernels take it: for softmax in base 2, and positive, so that the −Infinity of a masked score
 * stays what it is. Scores are multiplied by −scale where `negate` says so.
 */
export const scoreScale = (scale: number): { readonly scale: number; readonly negate: boolean } => ({
  scale: Math.max(Math.abs(scale) * Math.LOG2E, 1e-30),
  negate: scale < 0,
});

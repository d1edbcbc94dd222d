import type { DType } from "./dtype.js";
import { ArgumentError, ShapeError } from "./errors.js";
import type { Tensor } from "./tensor.js";

/**
 * Where each sequence of a packed batch begins: int32 on the host, length batch + 1, first 0, last the number of tokens,
 * non-decreasing. Sequence `s` holds tokens `cuSeqlens[s] … cuSeqlens[s+1] − 1`; it may be empty.
 */
export type CuSeqlens = Int32Array;

/** What is accepted as {@link CuSeqlens}. */
export type CuSeqlensInput = Int32Array | readonly number[];

/**
 * Checks and copies cumulative sequence lengths.
 * @param tokens the number of tokens that they must end at.
 * @throws ArgumentError naming the entry that is wrong.
 */
export function checkCuSeqlens(
  argument: string,
  value: CuSeqlensInput | undefined,
  tokens: number,
): CuSeqlens {
  if (value === undefined) return Int32Array.of(0, tokens);
  if (!(value instanceof Int32Array || Array.isArray(value)) || value.length === 0) {
    throw new ArgumentError(argument, value, "an Int32Array or array of batch + 1 integers");
  }
  const refuse = (i: number, expected: string): never => {
    throw new ArgumentError(`${argument}[${i}]`, value[i], expected);
  };
  for (let i = 0; i < value.length; i++) {
    const entry = value[i];
    if (!Number.isInteger(entry)) refuse(i, "an integer");
    if (i === 0 && entry !== 0) refuse(i, "0");
    if (i > 0 && entry < value[i - 1]) refuse(i, `at least ${value[i - 1]}, the entry before it`);
    if (entry > tokens) refuse(i, `at most ${tokens}, the number of tokens`);
  }
  const last = value.length - 1;
  if (value[last] !== tokens) refuse(last, `${tokens}, the number of tokens`);
  return new Int32Array(value);
}

/**
 * Cumulative sequence lengths of sequences with these lengths (tokens).
 * @throws ArgumentError when a length is not a non-negative integer.
 */
export function cuSeqlensFromLengths(lengths: readonly number[]): CuSeqlens {
  const cuSeqlens = new Int32Array(lengths.length + 1);
  lengths.forEach((length, s) => {
    const end = cuSeqlens[s] + length;
    if (!Number.isInteger(length) || length < 0 || end > 2 ** 31 - 1) {
      throw new ArgumentError(`lengths[${s}]`, length, "a non-negative integer, all together below 2^31");
    }
    cuSeqlens[s + 1] = end;
  });
  return cuSeqlens;
}

/** The length of each sequence, in tokens. */
export const sequenceLengths = (cuSeqlens: CuSeqlens): number[] => {
  const lengths: number[] = [];
  for (let s = 0; s + 1 < cuSeqlens.length; s++) lengths.push(cuSeqlens[s + 1] - cuSeqlens[s]);
  return lengths;
};

/**
 * A uniform batch `[batch, N, H, d]` as the packed layout `[batch·N, H, d]` with its cumulative lengths. The packed tensor
 * shares the memory of the given one; dispose both.
 * @throws ShapeError when the tensor has not four dimensions.
 */
export function packUniform<D extends DType>(batch: Tensor<D>): { packed: Tensor<D>; cuSeqlens: CuSeqlens } {
  if (batch.shape.length !== 4) throw new ShapeError("batch", batch.shape, "[batch, N, H, d]");
  const [sequences, length, heads, headDim] = batch.shape as [number, number, number, number];
  return {
    packed: batch.reshape([sequences * length, heads, headDim]),
    cuSeqlens: cuSeqlensFromLengths(new Array<number>(sequences).fill(length)),
  };
}

/** `n = ceil(N/B)`: the blocks of a sequence of `length` tokens. The last one may be short. */
export const blockCount = (length: number, blockSize: number): number => Math.ceil(length / blockSize);

/**
 * Where each sequence's blocks begin when the blocks of all sequences are numbered in a row: the layout of
 * `Backend.centroids`. Length batch + 1.
 */
export const cuBlocks = (cuSeqlens: CuSeqlens, blockSize: number): Int32Array =>
  cuSeqlensFromLengths(sequenceLengths(cuSeqlens).map((length) => blockCount(length, blockSize)));

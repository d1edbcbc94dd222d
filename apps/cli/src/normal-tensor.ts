import { type Backend, encode, type FloatDType, sizeOf, storageArray, type Tensor } from "@moba-js/tensor";
import { type Generator, gaussians, integer } from "./random.js";

/** So many values are drawn; larger tensors are made of pieces of them. */
const DRAWN = 2 ** 23;
const PIECE = 2 ** 16;
/** Places that are tried for a piece. */
const MOST_TRIES = 100;

/**
 * A tensor of standard normal values. Beyond {@link DRAWN} values it is pieces of so many, each from a random place on: gigabytes in
 * seconds. Pieces that have values in common lie differently within rows of the tensor, so that no two rows are the same.
 */
export function normalTensor<D extends FloatDType>(
  backend: Backend,
  random: Generator,
  shape: readonly number[],
  dtype: D,
): Tensor<D> {
  const size = sizeOf(shape);
  const drawn = encode(gaussians(random, Math.min(size, DRAWN)), dtype);
  if (size <= DRAWN) return backend.tensor(drawn, shape, dtype);
  const data = storageArray(dtype, size);
  const rowLength = size / shape[0];
  /** Where pieces begin that lie alike: by where in a row the first of the drawn values would be. */
  const beginsOf = new Map<number, number[]>();
  for (let at = 0; at < size; at += PIECE) {
    let begin = 0;
    let alike: number[] = [];
    for (let tries = 0; tries < MOST_TRIES; tries++) {
      begin = integer(random, DRAWN - PIECE);
      const first = (at + DRAWN * rowLength - begin) % rowLength;
      alike = beginsOf.get(first) ?? [];
      beginsOf.set(first, alike);
      if (alike.every((other) => Math.abs(other - begin) >= PIECE)) break;
    }
    alike.push(begin);
    data.set(drawn.subarray(begin, begin + Math.min(PIECE, size - at)), at);
  }
  return backend.tensor(data, shape, dtype);
}

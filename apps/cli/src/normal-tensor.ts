import { type Backend, encode, type FloatDType, sizeOf, storageArray, type Tensor } from "@moba-js/tensor";
import { type Generator, gaussians, integer } from "./random.js";

/** So many values are drawn; larger tensors are made of pieces of them. */
const DRAWN = 2 ** 23;
const PIECE = 2 ** 16;

/**
 * A tensor of standard normal values. Beyond {@link DRAWN} values it is pieces of so many, each from a random place on:
 * gigabytes in seconds, and no two rows the same but by chance.
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
  for (let at = 0; at < size; at += PIECE) {
    const begin = integer(random, DRAWN - PIECE);
    data.set(drawn.subarray(begin, begin + Math.min(PIECE, size - at)), at);
  }
  return backend.tensor(data, shape, dtype);
}

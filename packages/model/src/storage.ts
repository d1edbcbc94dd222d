import { type Backend, type DType, storageArray, type Tensor, type TypedArrays } from "@moba-js/tensor";
import type { StoredTensor } from "./safetensors.js";

/** The bytes of a tensor, as a file holds them. */
export async function storeTensor(tensor: Tensor): Promise<StoredTensor> {
  const { buffer, byteOffset, byteLength } = await tensor.data();
  return {
    dtype: tensor.dtype,
    shape: tensor.shape,
    bytes: new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength),
  };
}

/** A tensor of the bytes that a file holds. */
export function loadTensor(backend: Backend, { dtype, shape, bytes }: StoredTensor): Tensor {
  return backend.tensor(elementsOf(dtype, bytes), shape, dtype);
}

/** The elements that bytes are, copied: they may lie anywhere in a file. */
function elementsOf<D extends DType>(dtype: D, bytes: Uint8Array): TypedArrays[D] {
  const elements = storageArray(dtype, bytes.length / storageArray(dtype, 1).BYTES_PER_ELEMENT);
  new Uint8Array(elements.buffer).set(bytes);
  return elements;
}

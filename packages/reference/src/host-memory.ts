import {
  type DType,
  decode,
  encodeInto,
  type Storage,
  storageArray,
  type Tensor,
  type TypedArray,
} from "@moba-js/tensor";

/** Host memory: one typed array, of the dtype's storage type, or float64 for exact float32 tensors. */
export class HostStorage implements Storage {
  /** The elements in float64 as well, kept for tensors that are changed row by row and read whole. */
  widened: Float64Array | undefined;

  constructor(
    public array: TypedArray | Float64Array,
    readonly byteLength: number,
  ) {}

  free(): void {
    this.array = new Uint16Array(0);
    this.widened = undefined;
  }
}

/** Memory for `byteLength` bytes of a dtype; with `exact`, float32 is held in float64. */
export function allocateHost(byteLength: number, dtype: DType, exact: boolean): HostStorage {
  const length = byteLength / storageArray(dtype, 1).BYTES_PER_ELEMENT;
  const array = exact && dtype === "f32" ? new Float64Array(length) : storageArray(dtype, length);
  return new HostStorage(array, byteLength);
}

const storageOf = (tensor: Tensor): HostStorage => tensor.storage as HostStorage;

/** A tensor's values in float64: read them, never write them. */
export function valuesOf(tensor: Tensor): Float64Array {
  const { array, widened } = storageOf(tensor);
  if (array instanceof Float64Array) return array;
  return widened ?? decode(array, tensor.dtype);
}

/** The elements of an int32 tensor. */
export const integersOf = (tensor: Tensor<"i32">): Int32Array => storageOf(tensor).array as Int32Array;

/** Writes float64 results into a tensor from `begin` on, rounded to its dtype. */
export function write(tensor: Tensor, values: ArrayLike<number>, begin = 0): void {
  const { array, widened } = storageOf(tensor);
  const target = array.subarray(begin, begin + values.length);
  if (target instanceof Float64Array) target.set(values);
  else {
    encodeInto(values, tensor.dtype, target);
    widened?.set(decode(target, tensor.dtype), begin);
  }
}

/** {@link valuesOf}, kept from now on: for a tensor that is written row by row and read whole. */
export function keepValuesOf(tensor: Tensor): Float64Array {
  const values = valuesOf(tensor);
  const storage = storageOf(tensor);
  if (storage.array !== values) storage.widened = values;
  return values;
}

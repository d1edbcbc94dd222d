import { ArgumentError, DTypeError, ShapeError } from "./errors.js";

/** The element types of a tensor. `f16` is IEEE binary16, `bf16` the upper half of an IEEE binary32. */
export type DType = "f32" | "f16" | "bf16" | "i32" | "u32";

/** The floating-point dtypes: those that attention takes. */
export type FloatDType = "f32" | "f16" | "bf16";

/** The array that stores each dtype on the host. `f16` and `bf16` are stored as their 16 bits. */
export interface TypedArrays {
  f32: Float32Array;
  f16: Uint16Array;
  bf16: Uint16Array;
  i32: Int32Array;
  u32: Uint32Array;
}

/** Any of the storage arrays of {@link TypedArrays}. */
export type TypedArray = TypedArrays[DType];

/** Every dtype, in a fixed order. */
export const DTYPES: readonly DType[] = ["f32", "f16", "bf16", "i32", "u32"];

/** Every floating-point dtype, widest first. */
export const FLOAT_DTYPES: readonly FloatDType[] = ["f32", "f16", "bf16"];

/** Whether a value is one of the {@link DTYPES}. */
export const isDType = (value: unknown): value is DType => DTYPES.includes(value as DType);

/** Bytes that one element takes: 2 for `f16` and `bf16`, else 4. */
export const bytesPerElement = (dtype: DType): number => (dtype === "f16" || dtype === "bf16" ? 2 : 4);

/** A zero-filled storage array of `length` elements. */
export function storageArray<D extends DType>(dtype: D, length: number): TypedArrays[D];
export function storageArray(dtype: DType, length: number): TypedArray {
  switch (dtype) {
    case "f32":
      return new Float32Array(length);
    case "f16":
    case "bf16":
      return new Uint16Array(length);
    case "i32":
      return new Int32Array(length);
    case "u32":
      return new Uint32Array(length);
  }
}

const scratchF32 = /* @__PURE__ */ new Float32Array(1);
const scratchBits = /* @__PURE__ */ new Uint32Array(/* @__PURE__ */ scratchF32.buffer);

/**
 * The float32 bits of `x`, rounded to odd: truncated, with the last bit set when anything was lost. A second
 * rounding to a narrower format is then the same as one rounding from float64.
 */
function f32BitsToOdd(x: number): number {
  scratchF32[0] = x;
  const rounded = scratchF32[0];
  let bits = scratchBits[0];
  if (rounded !== x && !Number.isNaN(x)) {
    if (Math.abs(rounded) > Math.abs(x)) bits -= 1;
    bits |= 1;
  }
  return bits >>> 0;
}

/** The 16 bits of the bfloat16 nearest to `x`, ties to even; NaN stays a (quiet) NaN, overflow gives infinity. */
export function toBF16Bits(x: number): number {
  const bits = f32BitsToOdd(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16) & 0xffff;
}

/** The value of a bfloat16 given by its 16 bits. */
export function fromBF16Bits(bits: number): number {
  scratchBits[0] = bits << 16;
  return scratchF32[0];
}

/** The 16 bits of the binary16 nearest to `x`, ties to even; subnormals kept, NaN quiet, overflow gives infinity. */
export function toF16Bits(x: number): number {
  const bits = f32BitsToOdd(x);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((magnitude >>> 13) & 0x3ff);
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // 65520 and above round to infinity
  if (magnitude >= 0x38800000) {
    // A normal binary16: re-bias the exponent, round the 13 bits that fall off.
    return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
  }
  if (magnitude < 0x33000000) return sign; // under half of the smallest subnormal, 2^-24
  const significand = (magnitude & 0x7fffff) | 0x800000;
  const shift = 126 - (magnitude >>> 23);
  const whole = significand >>> shift;
  const rest = significand & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  return sign | (whole + (rest > half || (rest === half && (whole & 1) === 1) ? 1 : 0));
}

/** The value of a binary16 given by its 16 bits. */
export function fromF16Bits(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** `x` rounded to the nearest value of a floating-point dtype, ties to even. */
export function roundTo(dtype: FloatDType, x: number): number {
  switch (dtype) {
    case "f32":
      return Math.fround(x);
    case "f16":
      return fromF16Bits(toF16Bits(x));
    case "bf16":
      return fromBF16Bits(toBF16Bits(x));
  }
}

/** Writes `values`, each rounded to `dtype`, into a storage array of the same length. Integers must fit: no check here. */
export function encodeInto(values: ArrayLike<number>, dtype: DType, target: TypedArray): void {
  if (dtype === "f16") for (let i = 0; i < values.length; i++) target[i] = toF16Bits(values[i]);
  else if (dtype === "bf16") for (let i = 0; i < values.length; i++) target[i] = toBF16Bits(values[i]);
  else target.set(values);
}

/**
 * A storage array of `values` rounded to `dtype`.
 * @throws ArgumentError when an integer dtype is given a value that it cannot hold exactly.
 */
export function encode<D extends DType>(values: ArrayLike<number>, dtype: D): TypedArrays[D] {
  const target = storageArray(dtype, values.length);
  if (dtype === "i32" || dtype === "u32") {
    const [low, high] = dtype === "i32" ? [-(2 ** 31), 2 ** 31 - 1] : [0, 2 ** 32 - 1];
    for (let i = 0; i < values.length; i++) {
      const x = values[i];
      if (!Number.isInteger(x) || x < low || x > high) {
        throw new ArgumentError(`data[${i}]`, x, `an integer from ${low} to ${high} (dtype ${dtype})`);
      }
    }
  }
  encodeInto(values, dtype, target);
  return target;
}

let f16Values: Float64Array | undefined;

/** The values of a storage array, in float64 (exact for every dtype). */
export function decode(stored: TypedArray, dtype: DType): Float64Array {
  if (dtype === "f16") {
    f16Values ??= Float64Array.from({ length: 65536 }, (_, bits) => fromF16Bits(bits));
    const values = new Float64Array(stored.length);
    for (let i = 0; i < stored.length; i++) values[i] = f16Values[stored[i]];
    return values;
  }
  if (dtype === "bf16") {
    const bits = new Uint32Array(stored.length);
    for (let i = 0; i < stored.length; i++) bits[i] = stored[i] << 16;
    return Float64Array.from(new Float32Array(bits.buffer));
  }
  return Float64Array.from(stored);
}

/** The number of elements of a shape; 1 for the shape of a scalar, `[]`. */
export const sizeOf = (shape: readonly number[]): number => shape.reduce((size, extent) => size * extent, 1);

/**
 * Checks that a shape is a list of non-negative integers whose product is a safe integer.
 * @throws ShapeError otherwise.
 */
export function checkShape(argument: string, shape: readonly number[]): void {
  const valid = Array.isArray(shape) && shape.every((extent) => Number.isSafeInteger(extent) && extent >= 0);
  if (!valid || !Number.isSafeInteger(sizeOf(shape))) {
    throw new ShapeError(argument, shape, "of non-negative integers");
  }
}

/**
 * Checks that a value is one of the allowed dtypes.
 * @throws DTypeError otherwise.
 */
export function checkDType(argument: string, dtype: unknown, allowed: readonly DType[] = DTYPES): void {
  if (!allowed.includes(dtype as DType)) throw new DTypeError(argument, dtype, allowed.join(" or "));
}

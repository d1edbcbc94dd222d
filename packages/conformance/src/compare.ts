import { type DType, type FloatDType, roundTo } from "@moba-js/tensor";
import type { Outcome } from "./report.js";

/** Things by the names of the arguments or results that they are. */
export type Named<T> = Readonly<Record<string, T>>;

/** The same names with other things. */
export const mapNamed = <T, U>(named: Named<T>, map: (item: T, name: string) => U): Record<string, U> =>
  Object.fromEntries(Object.entries(named).map(([name, item]) => [name, map(item, name)]));

/** A tensor on the host; its values are exact in its dtype. */
export interface HostTensor {
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly values: Float64Array;
}

/** Unit roundoff: the largest relative error of rounding to a dtype. */
export const UNIT_ROUNDOFF: Readonly<Record<FloatDType, number>> = {
  f32: 2 ** -24,
  f16: 2 ** -11,
  bf16: 2 ** -8,
};

/** The bound on float32 results. */
export const F32_BOUND = 1e-5;

/** The bound on float32 results that are sums over all tokens: `dk`, `dv`, `dWeights`. */
export const F32_SUM_BOUND = 1e-4;

/** Low precision may have this many times the error of the emulation. */
const EMULATION_FACTOR = 1.5;

/** Rounding to a dtype, as the oracle takes it. */
export const rounding = (dtype: FloatDType) => (x: number) => roundTo(dtype, x);

/** What an output has to be. */
export interface Expectation {
  readonly shape: readonly number[];
  readonly dtype: FloatDType;
  /** The oracle's result in float64. */
  readonly reference: Float64Array;
  /** The bound in float32; low precision is never asked for more. */
  readonly bound: number;
  /**
   * Error (see {@link relativeError}) of the same operation computed in float64 with inputs, probabilities and output rounded
   * to the dtype. Left out for results that are float32, or exact, whatever the inputs are.
   */
  readonly emulatedError?: number;
  /** Root mean square that errors are measured against at least, where a result can cancel to nothing. Default 0. */
  readonly floor?: number;
}

/** `‖x − ref‖ / ‖ref‖` over the finite elements; the divisor is at least `floor·√size`. 0 when the two are equal. */
export function relativeError(actual: Float64Array, reference: Float64Array, floor = 0): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < reference.length; i++) {
    if (!Number.isFinite(actual[i]) || !Number.isFinite(reference[i])) continue;
    difference += (actual[i] - reference[i]) ** 2;
    norm += reference[i] ** 2;
  }
  if (difference === 0) return 0;
  return Math.sqrt(difference) / Math.max(Math.sqrt(norm), floor * Math.sqrt(reference.length));
}

/**
 * The largest error that a result may have. In low precision that is 1.5 × the emulated error. Of `n` rows, the emulated
 * error is itself only known up to about `u/√n` (`u` the unit roundoff): with few rows it may be tiny by luck, so it counts
 * as `2u/√n` at least, which matters below some 50 rows only.
 */
function allowedError({ dtype, bound, emulatedError, shape }: Expectation): number {
  if (dtype === "f32" || emulatedError === undefined) return bound;
  const rows = Math.max(
    1,
    shape.slice(0, -1).reduce((n, extent) => n * extent, 1),
  );
  const known = Math.max(emulatedError, (2 * UNIT_ROUNDOFF[dtype]) / Math.sqrt(rows));
  return Math.max(bound, EMULATION_FACTOR * known);
}

/** `[2, 0, 5]` for an element of a tensor. */
function coordinates(index: number, shape: readonly number[]): string {
  const at: number[] = [];
  let rest = index;
  for (const extent of [...shape].reverse()) {
    at.unshift(rest % extent);
    rest = Math.floor(rest / extent);
  }
  return `[${at.join(", ")}]`;
}

/** What is wrong with a tensor's shape or dtype, if anything. */
function layoutMismatch(
  actual: HostTensor,
  expected: Pick<HostTensor, "shape" | "dtype">,
): string | undefined {
  const words = [actual, expected].map(({ dtype, shape }) => `${dtype} [${shape.join(", ")}]`);
  return words[0] === words[1] ? undefined : `got ${words[0]}, expected ${words[1]}`;
}

/** The first place where one of the two is not finite and the other is something else; −1 when there is none. */
export const nonFiniteMismatch = (actual: Float64Array, reference: Float64Array): number =>
  reference.findIndex((expected, i) => {
    const bothFinite = Number.isFinite(expected) && Number.isFinite(actual[i]);
    return !bothFinite && !Object.is(expected, actual[i]);
  });

/** Judges one output against the oracle. */
export function judgeOutput(check: string, actual: HostTensor, expected: Expectation): Outcome {
  const { reference, floor } = expected;
  const layout = layoutMismatch(actual, expected);
  if (layout !== undefined) return { check, passed: false, message: layout };
  const at = nonFiniteMismatch(actual.values, reference);
  if (at >= 0) {
    const message = `${coordinates(at, actual.shape)} is ${actual.values[at]}, expected ${reference[at]}`;
    return { check, passed: false, message };
  }
  const measured = relativeError(actual.values, reference, floor);
  const allowed = allowedError(expected);
  if (!Number.isFinite(measured)) return { check, passed: false, message: "expected zeros" };
  return { check, passed: measured <= allowed, measured, allowed };
}

/** Judges outputs by name. */
export const judgeOutputs = (expected: Named<Expectation>, outputs: Named<HostTensor>): Outcome[] =>
  Object.entries(expected).map(([name, expectation]) => judgeOutput(name, outputs[name], expectation));

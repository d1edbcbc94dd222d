import type { Tensor } from "@moba-js/tensor";
import { ReferenceBackend } from "../src/index.js";

/** A backend whose float32 tensors hold float64. */
export const exactBackend = (): ReferenceBackend => new ReferenceBackend({ exact: true });

/** `Σ x·y`. */
export const inner = (x: Float64Array, y: Float64Array): number => x.reduce((sum, a, i) => sum + a * y[i], 0);

/** `‖x − ref‖ / ‖ref‖`; `‖x‖` where `ref` is zero. */
export function relativeError(x: Float64Array, ref: Float64Array): number {
  const difference = x.map((a, i) => a - ref[i]);
  const norm = Math.sqrt(inner(ref, ref));
  return Math.sqrt(inner(difference, difference)) / (norm === 0 ? 1 : norm);
}

/** A float tensor's values and shape, on the host. */
export interface Input {
  readonly values: Float64Array;
  readonly shape: readonly number[];
}

/**
 * Central differences of a scalar function of tensors, for each element of each input. Uploads round to float32, so the
 * steps are measured after rounding.
 */
export async function finiteDifferences(
  backend: ReferenceBackend,
  inputs: readonly Input[],
  f: (tensors: Tensor[]) => Promise<number>,
): Promise<Float64Array[]> {
  const at = async (which: number, element: number, value: number): Promise<number> => {
    const tensors = inputs.map(({ values, shape }, i) =>
      backend.tensor(i === which ? values.with(element, value) : values, shape),
    );
    const result = await f(tensors);
    for (const tensor of tensors) tensor.dispose();
    return result;
  };
  const gradients: Float64Array[] = [];
  for (const [which, { values }] of inputs.entries()) {
    const gradient = new Float64Array(values.length);
    for (const [i, x] of values.entries()) {
      const [low, high] = [Math.fround(x - 1e-4), Math.fround(x + 1e-4)];
      gradient[i] = ((await at(which, i, high)) - (await at(which, i, low))) / (high - low);
    }
    gradients.push(gradient);
  }
  return gradients;
}

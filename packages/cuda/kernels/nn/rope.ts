import type { FloatDType, RopeProblem, Tensor } from "@moba-js/tensor";
import { Arguments, type Device, pointerOf } from "../../src/device.js";
import { ceilDiv } from "../common/launch.js";

const THREADS = 128;

/** The last frequencies that were asked for: the layers of a model want the same. */
let last = { headDim: 0, base: 0, turns: new Int32Array(0) };

/** Turns a position of each pair of channels, `base^(−2c/d) / 2π`, as the sum of a float32 and its rest: `[d/2, 2]`. */
function frequencies(headDim: number, base: number): Int32Array {
  if (last.headDim === headDim && last.base === base) return last.turns;
  const pairs = Float32Array.from({ length: headDim }, (_, i) => {
    const turns = base ** ((-2 * Math.floor(i / 2)) / headDim) / (2 * Math.PI);
    return i % 2 === 0 ? turns : turns - Math.fround(turns);
  });
  last = { headDim, base, turns: new Int32Array(pairs.buffer) };
  return last.turns;
}

/** `Backend.rope`. */
export function rope(
  device: Device,
  { x, positions, base, inverse }: RopeProblem,
  out: Tensor<FloatDType>,
): void {
  const [tokens, heads, headDim] = x.shape;
  if (x.size === 0) return;
  const half = headDim / 2;
  const args = new Arguments()
    .pointer(pointerOf(x))
    .pointer(pointerOf(positions))
    .pointer(device.constant(frequencies(headDim, base)))
    .pointer(pointerOf(out))
    .int(tokens)
    .int(heads)
    .int(half)
    .float(inverse ? -1 : 1);
  const kernel = device.kernel("rope", `rope_${x.dtype}`);
  device.launch(kernel, [ceilDiv(tokens * half, THREADS), 1, 1], THREADS, 0, args);
}

import {
  type AttentionInputs,
  type AttentionOutputs,
  attentionRows,
  type BlockRouting,
  denseMask,
  type Gradients,
  type Mask,
  routingMask,
  windowMask,
} from "@moba-js/reference";
import { type FloatDType, roundTo } from "@moba-js/tensor";
import { ChangedBackend } from "./changed-backends.js";

/*
 * Arithmetic as a GPU kernel does it: float32 throughout, probabilities and their gradients rounded to the dtype before
 * each product. Routed attention goes block by block: each block's normalized result is rounded to the dtype, and the
 * blocks are merged by log-sum-exp.
 */

const { fround } = Math;

function dot(x: Float64Array, xBegin: number, y: Float64Array, yBegin: number, d: number): number {
  let sum = 0;
  for (let c = 0; c < d; c++) sum = fround(sum + fround(x[xBegin + c] * y[yBegin + c]));
  return sum;
}

/** A row's keys by the blocks of `blockSize` keys that they are in; all in one when it is infinite. */
function blocksOf(
  visible: readonly number[],
  { kvHeads, headDim }: AttentionInputs,
  blockSize: number,
): number[][] {
  const blocks = new Map<number, number[]>();
  for (const offset of visible) {
    const block = Math.floor(offset / (kvHeads * headDim * blockSize));
    blocks.set(block, [...(blocks.get(block) ?? []), offset]);
  }
  return [...blocks.values()];
}

function attend(inputs: AttentionInputs, mask: Mask, blockSize: number, dtype: FloatDType): AttentionOutputs {
  const { q, k, v, headDim: d } = inputs;
  const scale = fround(inputs.scale);
  const out = new Float64Array(q.length);
  const lse = new Float64Array(q.length / d).fill(Number.NEGATIVE_INFINITY);
  for (const { row, visible } of attentionRows(inputs, mask)) {
    const parts = blocksOf(visible, inputs, blockSize).map((keys) => {
      const scores = keys.map((offset) => fround(scale * dot(q, row * d, k, offset, d)));
      const max = scores.reduce((a, b) => Math.max(a, b));
      const p = scores.map((s) => fround(Math.exp(fround(s - max))));
      const sum = p.reduce((total, x) => fround(total + x), 0);
      const value = new Float64Array(d);
      keys.forEach((offset, j) => {
        const rounded = roundTo(dtype, p[j]);
        for (let c = 0; c < d; c++) value[c] = fround(value[c] + fround(rounded * v[offset + c]));
      });
      return {
        lse: fround(max + fround(Math.log(sum))),
        out: value.map((x) => (blockSize === Infinity ? fround(x / sum) : roundTo(dtype, fround(x / sum)))),
      };
    });
    if (parts.length === 0) continue;
    const max = parts.reduce((a, part) => Math.max(a, part.lse), Number.NEGATIVE_INFINITY);
    const weights = parts.map((part) => fround(Math.exp(fround(part.lse - max))));
    const sum = weights.reduce((total, x) => fround(total + x), 0);
    lse[row] = fround(max + fround(Math.log(sum)));
    for (let c = 0; c < d; c++) {
      const value = parts.reduce((total, part, i) => fround(total + fround(weights[i] * part.out[c])), 0);
      out[row * d + c] = fround(value / sum);
    }
  }
  return { out, lse };
}

function attendBackward(
  inputs: AttentionInputs & {
    routing: BlockRouting;
    dOut: Float64Array;
    out: Float64Array;
    lse: Float64Array;
  },
  dtype: FloatDType,
): Gradients {
  const { q, k, v, dOut, out, lse, headDim: d } = inputs;
  const scale = fround(inputs.scale);
  const dq = new Float64Array(q.length);
  const dk = new Float64Array(k.length);
  const dv = new Float64Array(v.length);
  const add = (target: Float64Array, at: number, x: number) => {
    target[at] = fround(target[at] + fround(x));
  };
  for (const { row, visible } of attentionRows(inputs, routingMask(inputs.routing, inputs))) {
    const D = dot(dOut, row * d, out, row * d, d);
    for (const keys of blocksOf(visible, inputs, inputs.routing.blockSize)) {
      const partial = new Float64Array(d);
      for (const offset of keys) {
        const s = fround(scale * dot(q, row * d, k, offset, d));
        const p = fround(Math.exp(fround(s - lse[row])));
        const ds = fround(p * fround(dot(dOut, row * d, v, offset, d) - D));
        const [roundedP, roundedDs] = [roundTo(dtype, p), roundTo(dtype, ds)];
        for (let c = 0; c < d; c++) {
          add(dv, offset + c, roundedP * dOut[row * d + c]);
          add(dk, offset + c, fround(scale * roundedDs) * q[row * d + c]);
          add(partial, c, fround(scale * roundedDs) * k[offset + c]);
        }
      }
      for (let c = 0; c < d; c++) add(dq, row * d + c, roundTo(dtype, partial[c]));
    }
  }
  return { dq, dk, dv };
}

/** A backend as exact as a good GPU backend, and no more. */
export const deviceArithmetic = (): ChangedBackend =>
  new ChangedBackend({
    attention: (inputs, dtype) => attend(inputs, denseMask(inputs.causal), Infinity, dtype),
    windowAttention: (inputs, dtype) => attend(inputs, windowMask(inputs.window), Infinity, dtype),
    attend: (inputs, dtype) => {
      const { routing } = inputs;
      return attend(inputs, routingMask(routing, inputs), routing.blockSize, dtype);
    },
    attendBackward,
  });

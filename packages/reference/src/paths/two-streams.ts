import { type BlockRouting, kvHeadOf, positionOf, sequences } from "../layout.js";
import type { AttentionInputs, AttentionOutputs } from "../oracle/attention.js";

/**
 * A softmax under way over one stream of keys: running maximum, sum and weighted value (the online softmax of
 * FlashAttention, arXiv 2205.14135).
 */
class Stream {
  max = Number.NEGATIVE_INFINITY;
  sum = 0;
  readonly value: Float64Array;

  constructor(headDim: number) {
    this.value = new Float64Array(headDim);
  }

  /** Takes in one key's score and its value row. */
  add(score: number, v: Float64Array, offset: number): void {
    if (score === Number.NEGATIVE_INFINITY) return; // no weight
    if (score > this.max) {
      const rescale = Math.exp(this.max - score);
      this.sum *= rescale;
      for (let c = 0; c < this.value.length; c++) this.value[c] *= rescale;
      this.max = score;
    }
    const weight = Math.exp(score - this.max);
    this.sum += weight;
    for (let c = 0; c < this.value.length; c++) this.value[c] += weight * v[offset + c];
  }

  get lse(): number {
    return this.sum === 0 ? Number.NEGATIVE_INFINITY : this.max + Math.log(this.sum);
  }
}

/**
 * Attention over routed blocks as the original MoBA computes it (arXiv 2502.13189, algorithm 1; the second forward path): one
 * stream over the query's own block, causal inside, one over the gathered keys of the other blocks, merged by log-sum-exp:
 * `out = Σ_s exp(lse_s − lse) out_s`, `lse = log Σ_s exp(lse_s)`. `round` is ignored.
 */
export function attendTwoStreams(inputs: AttentionInputs & { routing: BlockRouting }): AttentionOutputs {
  const { q, k, v, heads, kvHeads, headDim: d, scale, routing } = inputs;
  const { indices, slots, blockSize, causal } = routing;
  const out = new Float64Array(q.length);
  const lse = new Float64Array(q.length / d).fill(Number.NEGATIVE_INFINITY);
  for (const sequence of sequences(inputs)) {
    for (let i = 0; i < sequence.queries; i++) {
      for (let head = 0; head < heads; head++) {
        const row = (sequence.queryBegin + i) * heads + head;
        const position = positionOf(sequence, i);
        const ownBlock = Math.floor(position / blockSize);
        const own = new Stream(d);
        const gathered = new Stream(d);
        for (let slot = 0; slot < slots; slot++) {
          const block = indices[row * slots + slot];
          if (block < 0) continue;
          const isOwn = causal && block === ownBlock;
          const end = isOwn ? position + 1 : Math.min((block + 1) * blockSize, sequence.keys);
          for (let key = block * blockSize; key < end; key++) {
            const offset = ((sequence.keyBegin + key) * kvHeads + kvHeadOf(inputs, head)) * d;
            let score = 0;
            for (let c = 0; c < d; c++) score += q[row * d + c] * k[offset + c];
            (isOwn ? own : gathered).add(scale * score, v, offset);
          }
        }
        const used = [own, gathered].filter((stream) => stream.sum !== 0);
        if (used.length === 0) continue;
        const max = Math.max(...used.map((stream) => stream.lse));
        lse[row] = max + Math.log(used.reduce((sum, stream) => sum + Math.exp(stream.lse - max), 0));
        for (const stream of used) {
          const weight = Math.exp(stream.lse - lse[row]) / stream.sum;
          for (let c = 0; c < d; c++) out[row * d + c] += weight * stream.value[c];
        }
      }
    }
  }
  return { out, lse };
}

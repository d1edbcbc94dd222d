import { type BlockRouting, kvHeadOf, type Layout, positionOf, sequences } from "../layout.js";

/** Inputs of an attention in float64. */
export interface AttentionInputs extends Layout {
  /** `[T, H, d]` */
  readonly q: Float64Array;
  /** `[Tk, Hkv, d]` */
  readonly k: Float64Array;
  /** `[Tk, Hkv, d]` */
  readonly v: Float64Array;
  /** Factor of the scores. */
  readonly scale: number;
  /**
   * Rounds each probability and each output, to show the error that a narrower dtype cannot avoid: give
   * `x => roundTo("bf16", x)`. Default: no rounding.
   */
  readonly round?: (x: number) => number;
}

/** Outputs of an attention in float64. */
export interface AttentionOutputs {
  /** `[T, H, d]`, zero in rows that see no key. */
  readonly out: Float64Array;
  /** Natural log-sum-exp of the scaled scores, `[T, H]`, −Infinity in rows that see no key. */
  readonly lse: Float64Array;
}

/** One query of one head, for a mask to look at. */
export interface QueryRow {
  /** Token in the packed batch. */
  readonly query: number;
  readonly head: number;
  /** Position `t` among the keys of its sequence; negative for queries before the first key. */
  readonly position: number;
}

/** Says which keys a query sees; `key` counts within the sequence. */
export type Mask = (row: QueryRow, key: number) => boolean;

/** The mask of dense attention: every key, or every key at or before the query's position. */
export const denseMask =
  (causal: boolean): Mask =>
  ({ position }, key) =>
    !causal || key <= position;

/** The mask of sliding-window attention: the keys at `t − w + 1 … t`. */
export const windowMask =
  (window: number): Mask =>
  ({ position }, key) =>
    key <= position && key > position - window;

/** The mask of a routing: the keys of the chosen blocks, causal inside the own block. */
export function routingMask({ indices, slots, blockSize, causal }: BlockRouting, { heads }: Layout): Mask {
  return ({ query, head, position }, key) => {
    if (causal && key > position) return false;
    const row = (query * heads + head) * slots;
    return indices.subarray(row, row + slots).includes(Math.floor(key / blockSize));
  };
}

/** One row of attention: the keys that it sees and their probabilities. */
export interface AttentionRow extends QueryRow {
  /** Row `query·H + head` of outputs. */
  readonly row: number;
  /** Offsets into `k` and `v` of the keys that the row sees. */
  readonly visible: number[];
  /** `p_j = exp(s_j − lse)`, `s_j = scale·q·k_j`, one for each visible key. */
  readonly probabilities: number[];
  readonly lse: number;
}

/**
 * Every row of an attention in turn, by the definition: the softmax of the scaled scores of the keys that a mask lets
 * through. The other keys are not touched, so a NaN in one of them stays there.
 */
export function* attentionRows(inputs: AttentionInputs, mask: Mask): Iterable<AttentionRow> {
  const { q, k, heads, kvHeads, headDim, scale } = inputs;
  for (const sequence of sequences(inputs)) {
    for (let i = 0; i < sequence.queries; i++) {
      for (let head = 0; head < heads; head++) {
        const query = sequence.queryBegin + i;
        const row = query * heads + head;
        const queryRow = { query, head, position: positionOf(sequence, i) };
        const visible: number[] = [];
        const scores: number[] = [];
        for (let key = 0; key < sequence.keys; key++) {
          if (!mask(queryRow, key)) continue;
          const offset = ((sequence.keyBegin + key) * kvHeads + kvHeadOf(inputs, head)) * headDim;
          let dot = 0;
          for (let c = 0; c < headDim; c++) dot += q[row * headDim + c] * k[offset + c];
          visible.push(offset);
          scores.push(scale * dot);
        }
        const max = scores.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
        const sum = scores.reduce((total, s) => total + Math.exp(s - max), 0);
        const lse = scores.length === 0 ? Number.NEGATIVE_INFINITY : max + Math.log(sum);
        yield { ...queryRow, row, visible, probabilities: scores.map((s) => Math.exp(s - lse)), lse };
      }
    }
  }
}

/**
 * Masked attention, by the definition: `out_i = Σ_j p_ij v_j` over the keys that the mask lets through.
 * This is the first of the three forward paths ("masked dense").
 */
export function maskedAttention(inputs: AttentionInputs, mask: Mask): AttentionOutputs {
  const { v, headDim, round } = inputs;
  const rows = inputs.q.length / headDim;
  const out = new Float64Array(inputs.q.length);
  const lse = new Float64Array(rows);
  for (const { row, visible, probabilities, lse: rowLse } of attentionRows(inputs, mask)) {
    lse[row] = rowLse;
    visible.forEach((offset, j) => {
      const p = round ? round(probabilities[j]) : probabilities[j];
      for (let c = 0; c < headDim; c++) out[row * headDim + c] += p * v[offset + c];
    });
  }
  return { out: round ? out.map(round) : out, lse };
}

/** Dense attention (DESIGN: packed, causal or not, grouped heads, queries aligned to the end of the keys). */
export const denseAttention = (inputs: AttentionInputs & { causal: boolean }): AttentionOutputs =>
  maskedAttention(inputs, denseMask(inputs.causal));

/** Sliding-window attention over the keys at `t − w + 1 … t`. */
export const windowAttention = (inputs: AttentionInputs & { window: number }): AttentionOutputs =>
  maskedAttention(inputs, windowMask(inputs.window));

/** Attention over routed blocks (arXiv 2511.11571, section 2): softmax over the union of the chosen blocks' keys. */
export const attendBlocks = (inputs: AttentionInputs & { routing: BlockRouting }): AttentionOutputs =>
  maskedAttention(inputs, routingMask(inputs.routing, inputs));

import {
  type AttentionInputs,
  type AttentionOutputs,
  attendBlocks,
  attendBlocksBackward,
  attentionRows,
  type BlockRouting,
  centroids,
  denseAttention,
  denseMask,
  type KeyConvInputs,
  keyConv,
  keyConvBackward,
  type Mask,
  maskedAttention,
  ReferenceBackend,
  type RouteInputs,
  routeBlocks,
  routingMask,
  windowAttention,
} from "@moba-js/reference";
import {
  type AttentionOptions,
  type AttentionProblem,
  type AttentionResult,
  type Backend,
  cuBlocks,
  type DType,
  type FloatDType,
  type KeyConvHistoryProblem,
  type MobaOptions,
  type Operation,
  roundTo,
  type Storage,
  type Tensor,
  type TypedArray,
  UnsupportedError,
} from "@moba-js/tensor";
import type { ConformanceOptions, Group } from "../src/index.js";
import { arrayOf, ChangedBackend, type Changes } from "./changed-backends.js";

/** A class of bug, a backend that has it, and where the suite must find it. */
export interface Bug {
  readonly backend: () => Backend;
  /** The group in which it must show. */
  readonly group: Group;
  /** A check that must fail. */
  readonly check: string;
  /** Words in the title of a case that must fail. Default: any case. */
  readonly title?: string;
  /** The dtype in which it must show. Default f32. */
  readonly dtype?: FloatDType;
  readonly options?: ConformanceOptions;
}

/** The CPU backend with changed computations. */
const changed = (changes: Changes) => () => new ChangedBackend(changes);

// ---- wrong attention ----------------------------------------------------------------------------------------------

type Dense = AttentionInputs & { causal: boolean };
type Routed = AttentionInputs & { routing: BlockRouting };

/** The causal mask, `more` keys beyond the position. */
const shiftedMask =
  (more: number): Mask =>
  ({ position }, key) =>
    key <= position + more;

/** All sequences as if they were one. */
const unpacked = <T extends AttentionInputs>(inputs: T): T => ({
  ...inputs,
  cuSeqlens: Int32Array.of(0, inputs.cuSeqlens.at(-1) as number),
  cuSeqlensK: Int32Array.of(0, inputs.cuSeqlensK.at(-1) as number),
});

/** Query `i` at position `i`, whatever the number of keys. */
function alignedToStart({ causal, ...inputs }: Dense): AttentionOutputs {
  return maskedAttention(inputs, ({ query }, key) => {
    const s = inputs.cuSeqlens.findLastIndex((begin) => begin <= query);
    return !causal || key <= query - inputs.cuSeqlens[s];
  });
}

/** Keys or values with each query head's own copy, head `h` having key head `h mod Hkv`. */
function interleaved(
  x: Float64Array,
  { heads, kvHeads, headDim }: AttentionInputs | RouteInputs,
): Float64Array {
  const tokens = x.length / (kvHeads * headDim);
  return Float64Array.from({ length: tokens * heads * headDim }, (_, i) => {
    const row = Math.floor(i / headDim);
    const keyRow = Math.floor(row / heads) * kvHeads + ((row % heads) % kvHeads);
    return x[keyRow * headDim + (i % headDim)];
  });
}

/** Attention whose rows are computed one key at a time. */
function keyByKey(
  inputs: AttentionInputs,
  mask: Mask,
  add: (sum: number, p: number, v: number) => number,
): AttentionOutputs {
  const { v, headDim, q } = inputs;
  const out = new Float64Array(q.length);
  const lse = new Float64Array(q.length / headDim);
  for (const row of attentionRows(inputs, mask)) {
    lse[row.row] = row.lse;
    row.visible.forEach((offset, j) => {
      for (let c = 0; c < headDim; c++) {
        const at = row.row * headDim + c;
        out[at] = add(out[at], row.probabilities[j], v[offset + c]);
      }
    });
  }
  return { out, lse };
}

/** Every key of the sequence is multiplied, the masked ones by a probability of 0: `0 · NaN` is NaN. */
function zeroTimesMasked(inputs: Dense): AttentionOutputs {
  const { out, lse } = denseAttention(inputs);
  const { v, headDim, heads, kvHeads, cuSeqlens, cuSeqlensK } = inputs;
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    for (let i = cuSeqlens[s] * heads * headDim; i < cuSeqlens[s + 1] * heads * headDim; i++) {
      const head = Math.floor(((Math.floor(i / headDim) % heads) * kvHeads) / heads);
      for (let key = cuSeqlensK[s]; key < cuSeqlensK[s + 1]; key++) {
        out[i] += 0 * v[(key * kvHeads + head) * headDim + (i % headDim)];
      }
    }
  }
  return { out, lse };
}

/** Truncated instead of rounded to bfloat16. */
function truncated({ out, lse }: AttentionOutputs): AttentionOutputs {
  const bits = new Uint32Array(Float32Array.from(out).buffer).map((word) => word & 0xffff0000);
  return { out: Float64Array.from(new Float32Array(bits.buffer)), lse };
}

/** The exponentials of the scores as they are, in float32. */
const withoutMaximum = (inputs: Dense): AttentionOutputs => {
  const { out, lse } = denseAttention(inputs);
  return { out, lse: lse.map((x) => Math.log(Math.fround(Math.exp(x)))) };
};

/** Log-sum-exp over the keys of the last slot only. */
function lseOfOneSlot(inputs: Routed): AttentionOutputs {
  const { routing } = inputs;
  const last = {
    ...routing,
    indices: routing.indices.map((block, i) => ((i + 1) % routing.slots ? -1 : block)),
  };
  return { out: attendBlocks(inputs).out, lse: attendBlocks({ ...inputs, routing: last }).lse };
}

/** Slots averaged instead of merged by their log-sum-exp. */
function averagedSlots(inputs: Routed): AttentionOutputs {
  const { routing, headDim } = inputs;
  const parts = Array.from({ length: routing.slots }, (_, slot) => {
    const indices = routing.indices.map((block, i) => (i % routing.slots === slot ? block : -1));
    return attendBlocks({ ...inputs, routing: { ...routing, indices } });
  });
  const { out, lse } = attendBlocks(inputs);
  const averaged = out.map((_, i) => {
    const used = parts.filter((part) => part.lse[Math.floor(i / headDim)] > Number.NEGATIVE_INFINITY);
    return used.reduce((sum, part) => sum + part.out[i], 0) / Math.max(1, used.length);
  });
  return { out: averaged, lse };
}

/** Sees every key of its blocks, also the later ones of the own block. */
const futureInOwnBlock = (inputs: Routed): AttentionOutputs =>
  maskedAttention(inputs, (row, key) =>
    routingMask(inputs.routing, inputs)({ ...row, position: Number.POSITIVE_INFINITY }, key),
  );

/** Rows without keys have a log-sum-exp that is only very small. */
const finiteLse = ({ out, lse }: AttentionOutputs): AttentionOutputs => ({
  out,
  lse: lse.map((x) => Math.max(x, -1e30)),
});

/** Takes −1 for block 0. */
const unusedSlotsAttended = (inputs: Routed): AttentionOutputs => {
  const { routing } = inputs;
  const indices = routing.indices.map((block) => (block === -1 ? 0 : block));
  return attendBlocks({ ...inputs, routing: { ...routing, indices } });
};

/** Believes that slots are used from the front. */
const stopsAtUnusedSlot = (inputs: Routed): AttentionOutputs => {
  const { routing } = inputs;
  let stopped = false;
  const indices = routing.indices.map((block, i) => {
    stopped = (i % routing.slots === 0 ? false : stopped) || block === -1;
    return stopped ? -1 : block;
  });
  return attendBlocks({ ...inputs, routing: { ...routing, indices } });
};

// ---- wrong routing ------------------------------------------------------------------------------------------------

/** Changes each row of a right routing. */
const rows =
  (change: (row: Int32Array, inputs: RouteInputs) => void): NonNullable<Changes["route"]> =>
  (inputs, right, slots) => {
    for (let at = 0; slots > 0 && at < right.length; at += slots) {
      change(right.subarray(at, at + slots), inputs);
    }
  };

/** Overwrites the right routing with that of changed inputs. */
const routedAs =
  (change: (inputs: RouteInputs) => RouteInputs): NonNullable<Changes["route"]> =>
  (inputs, right) => {
    right.set(routeBlocks(change(inputs)).indices.subarray(0, right.length));
  };

/** Of equal scores the higher block wins: one more channel lifts later blocks by less than scores of small integers differ. */
const tiesToTheHigher = routedAs((inputs) => {
  const { q, k, headDim, kvHeads } = inputs;
  const lifted = (x: Float64Array, lift: (row: number) => number) =>
    Float64Array.from({ length: (x.length / headDim) * (headDim + 1) }, (_, i) => {
      const [row, c] = [Math.floor(i / (headDim + 1)), i % (headDim + 1)];
      return c === headDim ? lift(row) : x[row * headDim + c];
    });
  return {
    ...inputs,
    q: lifted(q, () => 1),
    k: lifted(k, (row) => 1e-6 * Math.floor(row / kvHeads)),
    headDim: headDim + 1,
  };
});

/** NaN scores rank above all others. */
const nanFirst = routedAs((inputs) => ({ ...inputs, k: inputs.k.map((x) => (Number.isNaN(x) ? 1e6 : x)) }));

/** A short last block's keys summed, but divided by `B`. */
const dividedByB: NonNullable<Changes["centroids"]> = (inputs) => {
  const { cuSeqlens, blockSize, kvHeads, headDim } = inputs;
  const means = centroids(inputs);
  const starts = cuBlocks(cuSeqlens, blockSize);
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    const rest = (cuSeqlens[s + 1] - cuSeqlens[s]) % blockSize;
    if (rest === 0) continue;
    const last = (starts[s + 1] - 1) * kvHeads * headDim;
    for (let c = last; c < last + kvHeads * headDim; c++) means[c] *= rest / blockSize;
  }
  return means;
};

// ---- wrong convolution --------------------------------------------------------------------------------------------

/** One sequence from the first token to the last. */
const oneSequence = <T extends { cuSeqlens: Int32Array }>(inputs: T): T => ({
  ...inputs,
  cuSeqlens: Int32Array.of(0, inputs.cuSeqlens.at(-1) as number),
});

const withoutHistory = ({ history: _, ...inputs }: KeyConvInputs): KeyConvInputs => inputs;

/** `w_{W−1−l}` in the place of `w_l`. */
const reversedTaps = (inputs: KeyConvInputs): KeyConvInputs => {
  const tap = inputs.kvHeads * inputs.headDim;
  const weights = inputs.weights.map(
    (_, i) => inputs.weights[(inputs.width - 1 - Math.floor(i / tap)) * tap + (i % tap)],
  );
  return { ...inputs, weights };
};

type ConvBackward = NonNullable<Changes["keyConvBackward"]>;

/** `SiLU'(s) = σ(s)`, for `W = 1`, where `s_t = w ⊙ k_t`. */
const siluDerivativeWrong: ConvBackward = (inputs) => {
  const right = keyConvBackward(inputs);
  if (inputs.width > 1) return right;
  const { k, weights, dOut } = inputs;
  const dk = k.map((x, i) => {
    const w = weights[i % weights.length];
    return dOut[i] * (1 + w / (1 + Math.exp(-w * x)));
  });
  return { ...right, dk };
};

/** `dWeights` as if the sequences were one. */
const boundaryCrossed: ConvBackward = (inputs) => ({
  dk: keyConvBackward(inputs).dk,
  dWeights: keyConvBackward(oneSequence(inputs)).dWeights,
});

// ---- wrong gradients ----------------------------------------------------------------------------------------------

type Backward = NonNullable<Changes["attendBackward"]>;

/** Gradients by the definition, then changed. */
const gradientsOf =
  (
    change: (right: ReturnType<Backward>, inputs: Parameters<Backward>[0]) => Partial<ReturnType<Backward>>,
  ): Backward =>
  (inputs) => {
    const right = attendBlocksBackward(inputs);
    return { ...right, ...change(right, inputs) };
  };

/** Only the first query head of each group counts. */
const firstHeadOfGroup = (inputs: Parameters<Backward>[0]): Float64Array => {
  const { heads, kvHeads, headDim, dOut } = inputs;
  return dOut.map((x, i) => ((Math.floor(i / headDim) % heads) % (heads / kvHeads) === 0 ? x : 0));
};

/** `dv` with `exp(s)` for `exp(s − lse)`. */
const unnormalizedDv: Backward = (inputs) => {
  const { headDim, lse } = inputs;
  const dOut = inputs.dOut.map((x, i) => x * Math.exp(lse[Math.floor(i / headDim)]));
  return { ...attendBlocksBackward(inputs), dv: attendBlocksBackward({ ...inputs, dOut }).dv };
};

/** `ds = p · dP`, the term `D` forgotten: the gradients of a softmax whose sum is held fixed. */
const withoutD: Backward = (inputs) => {
  const { q, k, v, dOut, headDim, scale, routing } = inputs;
  const right = attendBlocksBackward(inputs);
  const [dq, dk] = [new Float64Array(q.length), new Float64Array(k.length)];
  for (const { row, visible, probabilities } of attentionRows(inputs, routingMask(routing, inputs))) {
    visible.forEach((offset, j) => {
      let dP = 0;
      for (let c = 0; c < headDim; c++) dP += dOut[row * headDim + c] * v[offset + c];
      for (let c = 0; c < headDim; c++) {
        dq[row * headDim + c] += scale * probabilities[j] * dP * k[offset + c];
        dk[offset + c] += scale * probabilities[j] * dP * q[row * headDim + c];
      }
    });
  }
  return { dq, dk, dv: right.dv };
};

// ---- wrong manners ------------------------------------------------------------------------------------------------

class UnwrittenLastRow extends ReferenceBackend {
  protected override runAttention(
    problem: AttentionProblem & { causal: boolean },
    outputs: AttentionResult,
  ): void {
    const row = problem.heads * problem.headDim;
    const before = arrayOf(outputs.out).slice(-row);
    super.runAttention(problem, outputs);
    if (problem.tokens > 0) arrayOf(outputs.out).set(before, outputs.out.size - row);
  }
}

class Nondeterministic extends ReferenceBackend {
  #calls = 0;
  protected override runAttention(
    problem: AttentionProblem & { causal: boolean },
    outputs: AttentionResult,
  ): void {
    super.runAttention(problem, outputs);
    this.#calls += 1;
    const out = arrayOf(outputs.out);
    for (let i = 0; i < out.length; i++) out[i] *= 1 + (this.#calls % 2) * 2 ** -22;
  }
}

class ChangesItsInput extends ReferenceBackend {
  protected override runAttention(
    problem: AttentionProblem & { causal: boolean },
    outputs: AttentionResult,
  ): void {
    super.runAttention(problem, outputs);
    arrayOf(problem.q).fill(0);
  }
}

class Leaks extends ReferenceBackend {
  override attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): AttentionResult {
    this.zeros([16]);
    return super.attention(q, k, v, options);
  }
}

class ClaimsTooMuch extends ReferenceBackend {
  protected override runAttention(problem: AttentionProblem): void {
    throw new UnsupportedError("attention", problem.dtype, this.name);
  }
}

class DeniesAndRuns extends ReferenceBackend {
  override supports(operation: Operation, dtype: DType): boolean {
    return operation !== "attention" && super.supports(operation, dtype);
  }
  override attention(q: Tensor, k: Tensor, v: Tensor): AttentionResult {
    return this.windowAttention(q, k, v, { window: 1 });
  }
}

class CannotSay extends ReferenceBackend {
  override supports(): boolean {
    throw new Error("no device");
  }
}

class UntypedErrors extends ReferenceBackend {
  override attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): AttentionResult {
    try {
      return super.attention(q, k, v, options);
    } catch (error) {
      throw new Error((error as Error).message);
    }
  }
}

class TakesAnything extends ReferenceBackend {
  override moba(q: Tensor, k: Tensor, v: Tensor, options: MobaOptions): ReturnType<Backend["moba"]> {
    return super.moba(q, k, v, { ...options, topK: options.topK || 1 });
  }
}

class ForgetsScale extends ReferenceBackend {
  override moba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    { scale: _, ...options }: MobaOptions,
  ): ReturnType<Backend["moba"]> {
    return super.moba(q, k, v, options);
  }
}

class WrongDType extends ReferenceBackend {
  override centroids(...[k, options]: Parameters<Backend["centroids"]>): Tensor<"f32"> {
    const { shape } = super.centroids(k, options);
    return this.zeros(shape, "bf16") as unknown as Tensor<"f32">;
  }
}

class TruncatesUploads extends ReferenceBackend {
  override tensor<D extends DType = "f32">(
    data: ArrayLike<number>,
    shape: readonly number[],
    dtype?: D,
  ): Tensor<D> {
    if (dtype !== "bf16" || data instanceof Uint16Array) return super.tensor(data, shape, dtype);
    const bits = new Uint32Array(Float32Array.from(data).buffer);
    return super.tensor(
      Uint16Array.from(bits, (word) => word >>> 16),
      shape,
      dtype,
    );
  }
}

class NeverAnswers extends ReferenceBackend {
  protected override download(_storage: Storage): Promise<TypedArray> {
    return new Promise(() => undefined);
  }
}

class LosesHistory extends ReferenceBackend {
  protected override runKeyConvHistory(problem: KeyConvHistoryProblem, next: Tensor<FloatDType>): void {
    super.runKeyConvHistory(problem, next);
    arrayOf(next).fill(0);
  }
}

// ---- the list -----------------------------------------------------------------------------------------------------

const dense = (attention: (inputs: Dense, dtype: FloatDType) => AttentionOutputs) => changed({ attention });
const routed = (attend: (inputs: Routed) => AttentionOutputs) => changed({ attend });
const route = (change: NonNullable<Changes["route"]>) => changed({ route: change });
const backward = (attendBackward: Backward) => changed({ attendBackward });

const window = (compute: (inputs: AttentionInputs & { window: number }) => AttentionOutputs) =>
  changed({ windowAttention: compute });

/** Every class of bug that the suite has to find. */
export const BUGS: Readonly<Record<string, Bug>> = {
  "causal mask one key too far": {
    backend: dense((inputs) => maskedAttention(inputs, inputs.causal ? shiftedMask(1) : denseMask(false))),
    group: "attention",
    check: "out",
  },
  "causal mask one key short": {
    backend: dense((inputs) => maskedAttention(inputs, inputs.causal ? shiftedMask(-1) : denseMask(false))),
    group: "attention",
    check: "lse",
  },
  "queries aligned to the first key": {
    backend: dense(alignedToStart),
    group: "attention",
    check: "out",
    title: "Nq < Nk",
  },
  "causal taken for granted": {
    backend: dense((inputs) => denseAttention({ ...inputs, causal: true })),
    group: "attention",
    check: "out",
    title: "not causal",
  },
  "wrong default scale": {
    backend: dense((inputs) => denseAttention({ ...inputs, scale: 1 / inputs.headDim })),
    group: "attention",
    check: "out",
  },
  "own scale forgotten": {
    backend: dense((inputs) => denseAttention({ ...inputs, scale: 1 / Math.sqrt(inputs.headDim) })),
    group: "attention",
    check: "out",
    title: "own scale",
  },
  "scale's sign forgotten": {
    backend: dense((inputs) => denseAttention({ ...inputs, scale: Math.abs(inputs.scale) })),
    group: "attention",
    check: "out",
    title: "negative scale",
  },
  "log-sum-exp in base 2": {
    backend: dense((inputs) => {
      const { out, lse } = denseAttention(inputs);
      return { out, lse: lse.map((x) => x / Math.LN2) };
    }),
    group: "attention",
    check: "lse",
  },
  "no maximum taken off the scores": {
    backend: dense(withoutMaximum),
    group: "attention",
    check: "lse",
    title: "large scores",
  },
  "finite log-sum-exp of rows without keys": {
    backend: dense((inputs) => finiteLse(denseAttention(inputs))),
    group: "attention",
    check: "lse",
    title: "rows without keys",
  },
  "NaN in rows without keys": {
    backend: dense((inputs) => {
      const { out, lse } = denseAttention(inputs);
      return {
        out: out.map((x, i) => x / Math.min(1, Math.exp(lse[Math.floor(i / inputs.headDim)] + 700))),
        lse,
      };
    }),
    group: "attention",
    check: "out",
    title: "rows without keys",
  },
  "key heads interleaved": {
    backend: dense((inputs) => {
      const { k, v, heads } = inputs;
      return denseAttention({
        ...inputs,
        k: interleaved(k, inputs),
        v: interleaved(v, inputs),
        kvHeads: heads,
      });
    }),
    group: "attention",
    check: "out",
    title: "G = 4",
  },
  "sequences bleed into each other": {
    backend: dense((inputs) => denseAttention(unpacked(inputs))),
    group: "attention",
    check: "out",
    title: "several sequences",
  },
  "output truncated to bfloat16": {
    backend: dense((inputs) => truncated(denseAttention(inputs))),
    group: "attention",
    check: "out",
    title: "uniform probabilities",
    dtype: "bf16",
  },
  "values summed in bfloat16": {
    backend: dense((inputs) =>
      keyByKey(inputs, denseMask(inputs.causal), (sum, p, v) => roundTo("bf16", sum + p * v)),
    ),
    group: "attention",
    check: "out",
    dtype: "bf16",
  },
  "float32 values multiplied in bfloat16": {
    backend: dense((inputs) => denseAttention({ ...inputs, v: inputs.v.map((x) => roundTo("bf16", x)) })),
    group: "attention",
    check: "out",
  },
  "window one key too wide": {
    backend: window((inputs) => windowAttention({ ...inputs, window: inputs.window + 1 })),
    group: "windowAttention",
    check: "out",
  },
  "window one key too narrow": {
    backend: window((inputs) => windowAttention({ ...inputs, window: inputs.window - 1 })),
    group: "windowAttention",
    check: "out",
  },
  "own block seen whole": { backend: routed(futureInOwnBlock), group: "attend", check: "out" },
  "log-sum-exp of one slot": { backend: routed(lseOfOneSlot), group: "attend", check: "lse" },
  "slots averaged": { backend: routed(averagedSlots), group: "attend", check: "out" },
  "unused slots attended": {
    backend: routed(unusedSlotsAttended),
    group: "attend",
    check: "out",
    title: "random routing",
  },
  "slots after an unused one ignored": {
    backend: routed(stopsAtUnusedSlot),
    group: "attend",
    check: "out",
    title: "random routing",
  },
  "own block missing": {
    backend: route(
      rows((row, { causal }) => {
        if (causal && row.length > 1) row[row.findLastIndex((block) => block >= 0)] = -1;
      }),
    ),
    group: "route",
    check: "form",
  },
  "one block too few": {
    backend: route(rows((row) => row.fill(-1, Math.max(1, row.length - 1)))),
    group: "route",
    check: "form",
  },
  "a block twice": {
    backend: route(
      rows((row) => {
        if (row.length > 2 && row[1] >= 0) row[1] = row[0];
      }),
    ),
    group: "route",
    check: "form",
  },
  "a block of the future": {
    backend: route(
      rows((row, { causal }) => {
        if (causal && row.length > 1 && row[0] >= 0) row[0] = row.length * 50;
      }),
    ),
    group: "route",
    check: "form",
  },
  "the last blocks instead of the best": {
    backend: route(routedAs((inputs) => ({ ...inputs, q: inputs.q.map(() => 0), k: inputs.k.map(() => 0) }))),
    group: "route",
    check: "selection",
  },
  "one slot in a hundred wrong": {
    backend: route(
      routedAs((inputs) => ({
        ...inputs,
        q: inputs.q.map((x) => roundTo("bf16", x * 1.013)),
        k: inputs.k.map((x) => x + 0.05 * Math.sin(1e4 * x)),
      })),
    ),
    group: "route",
    check: "agreement",
    dtype: "bf16",
  },
  "ties to the higher block": { backend: route(tiesToTheHigher), group: "route", check: "ties" },
  "key heads interleaved in routing": {
    backend: route(
      routedAs((inputs) => ({ ...inputs, k: interleaved(inputs.k, inputs), kvHeads: inputs.heads })),
    ),
    group: "route",
    check: "selection",
    title: "G = 4",
  },
  "NaN scores chosen": { backend: route(nanFirst), group: "nonFinite", check: "selection" },
  "centroids divided by B": {
    backend: changed({ centroids: dividedByB }),
    group: "centroids",
    check: "centroids",
    title: "short last block",
  },
  "centroids summed in bfloat16": {
    backend: changed({ centroids: (inputs) => centroids(inputs).map((x) => roundTo("bf16", x)) }),
    group: "centroids",
    check: "centroids",
    dtype: "bf16",
  },
  "dq without the scale": {
    backend: backward(gradientsOf(({ dq }, { scale }) => ({ dq: dq.map((x) => x / scale) }))),
    group: "attendBackward",
    check: "dq",
  },
  "dk of one head of each group": {
    backend: backward(
      gradientsOf((_, inputs) => ({
        dk: attendBlocksBackward({ ...inputs, dOut: firstHeadOfGroup(inputs) }).dk,
      })),
    ),
    group: "attendBackward",
    check: "dk",
    title: "G = 4",
  },
  "dv of unnormalized probabilities": {
    backend: backward(unnormalizedDv),
    group: "attendBackward",
    check: "dv",
  },
  "softmax gradient without D": { backend: backward(withoutD), group: "attendBackward", check: "dq" },
  "dk of unattended keys left unwritten": {
    backend: backward(gradientsOf(({ dk }) => ({ dk: dk.map((x) => (x === 0 ? Number.NaN : x)) }))),
    group: "attendBackward",
    check: "dk",
    title: "one new token",
  },
  "dq of the wrong sign": {
    backend: backward(gradientsOf(({ dq }) => ({ dq: dq.map((x) => -x) }))),
    group: "attendBackward",
    check: "dq",
  },
  "convolution not reset between sequences": {
    backend: changed({
      keyConv: (inputs) => (inputs.history ? keyConv(inputs) : keyConv(oneSequence(inputs))),
    }),
    group: "keyConv",
    check: "out",
    title: "several sequences",
  },
  "no residual": {
    backend: changed({ keyConv: (inputs) => keyConv(inputs).map((x, i) => x - inputs.k[i]) }),
    group: "keyConv",
    check: "out",
  },
  "taps reversed": {
    backend: changed({ keyConv: (inputs) => keyConv(reversedTaps(inputs)) }),
    group: "keyConv",
    check: "out",
  },
  "history ignored": {
    backend: changed({ keyConv: (inputs) => keyConv(withoutHistory(inputs)) }),
    group: "keyConv",
    check: "stream in pieces",
  },
  "history lost": { backend: () => new LosesHistory(), group: "keyConv", check: "history" },
  "wrong derivative of SiLU": {
    backend: changed({ keyConvBackward: siluDerivativeWrong }),
    group: "keyConvBackward",
    check: "dk",
    title: "W = 1",
  },
  "dWeights across sequences": {
    backend: changed({ keyConvBackward: boundaryCrossed }),
    group: "keyConvBackward",
    check: "dWeights",
    title: "several sequences",
  },
  "0 · NaN of masked keys": {
    backend: dense(zeroTimesMasked),
    group: "nonFinite",
    check: "out",
    title: "attention, NaN in v",
  },
  "NaN hidden": {
    backend: dense((inputs) => {
      const { out, lse } = denseAttention(inputs);
      return { out: out.map((x) => (Number.isNaN(x) ? 0 : x)), lse };
    }),
    group: "nonFinite",
    check: "out",
    title: "attention, NaN in v",
  },
  "last row unwritten": { backend: () => new UnwrittenLastRow(), group: "attention", check: "out" },
  "not the same bits twice": {
    backend: () => new Nondeterministic(),
    group: "attention",
    check: "same bits twice",
  },
  "input changed": { backend: () => new ChangesItsInput(), group: "attention", check: "inputs unchanged" },
  "tensor leaked": { backend: () => new Leaks(), group: "attention", check: "no leak" },
  "float32 result in bfloat16": { backend: () => new WrongDType(), group: "centroids", check: "centroids" },
  "uploads truncated to bfloat16": {
    backend: () => new TruncatesUploads(),
    group: "tensors",
    check: "rounds to nearest, ties to even",
    dtype: "bf16",
  },
  "claims what it does not support": {
    backend: () => new ClaimsTooMuch(),
    group: "attention",
    check: "runs",
  },
  "runs what it denies": { backend: () => new DeniesAndRuns(), group: "badInput", check: "UnsupportedError" },
  "supports throws": { backend: () => new CannotSay(), group: "badInput", check: "runs" },
  "untyped errors": { backend: () => new UntypedErrors(), group: "badInput", check: "attention: q disposed" },
  "bad input taken": { backend: () => new TakesAnything(), group: "badInput", check: "moba: topK = 0" },
  "never answers": {
    backend: () => new NeverAnswers(),
    group: "tensors",
    check: "runs",
    options: { timeoutSeconds: 0.05 },
  },
  "moba forgets the scale": {
    backend: () => new ForgetsScale(),
    group: "moba",
    check: "out",
    title: "own scale",
  },
  "heads not alike": {
    backend: dense((inputs) => {
      const { heads, headDim } = inputs;
      const q = inputs.q.map((x, i) => (Math.floor(i / headDim) % heads === 0 ? 1.5 * x : x));
      return denseAttention({ ...inputs, q });
    }),
    group: "properties",
    check: "holds",
    title: "permuting heads",
  },
  "sequences bleed, on random shapes": {
    backend: dense((inputs) => denseAttention(unpacked(inputs))),
    group: "properties",
    check: "holds",
    title: "attention: packed sequences",
  },
  "the future seen, on random shapes": {
    backend: dense((inputs) => maskedAttention(inputs, inputs.causal ? shiftedMask(1) : denseMask(false))),
    group: "properties",
    check: "holds",
    title: "attention: a future key",
  },
  "never more than two blocks": {
    backend: routed((inputs) => {
      const { routing, heads, headDim, ...rest } = inputs;
      const { slots } = routing;
      const indices = routing.indices.map((block, i) =>
        i % slots > 0 && i % slots < slots - 1 ? -1 : block,
      );
      return attendBlocks({ ...rest, heads, headDim, routing: { ...routing, indices } });
    }),
    group: "properties",
    check: "holds",
    title: "k ≥ n is dense",
  },
  "own scale forgotten, on random shapes": {
    backend: dense((inputs) => denseAttention({ ...inputs, scale: 1 / Math.sqrt(inputs.headDim) })),
    group: "properties",
    check: "holds",
    title: "half the scale",
  },
};

import { attentionRows } from "@moba-js/reference";
import {
  type Backend,
  type FloatDType,
  type MobaOptions,
  roundTo,
  sequenceLengths,
  type Tensor,
  type TypedArray,
} from "@moba-js/tensor";
import { type Generator, integer } from "./random.js";
import { type AttentionTensors, Comparison, headValues, type Judged, runPoisoned } from "./row-check.js";

/** How far gradients are from the float64 oracle, `‖x − ref‖ / ‖ref‖`. */
export interface GradientErrors {
  readonly dq: Judged;
  readonly dk: Judged;
  readonly dv: Judged;
}

/** How far sampled rows of the gradients of causal attention are from the float64 oracle. */
export interface GradientCheck {
  /** Rows of MoBA's `dk` and `dv`, each of one key and key head, that were looked at. */
  readonly keys: number;
  /** Rows of MoBA's `dq`, each of one query and head: all whose query attends one of those keys. */
  readonly queries: number;
  /** On the backend's own routing. */
  readonly moba: GradientErrors;
  /** Absent where dense attention was not run. */
  readonly dense?: GradientErrors;
  readonly passed: boolean;
}

/** Attention's inputs and the gradient of its output, packed sequences. */
export interface GradientTensors extends AttentionTensors {
  /** `[T, H, d]` */
  readonly dOut: Tensor<FloatDType>;
}

type Named = "q" | "k" | "v" | "dOut" | "dq" | "dk" | "dv";

/** Tensors on the host, as stored. */
interface HostTensors {
  readonly data: Readonly<Record<Named, TypedArray>>;
  readonly queryShape: readonly number[];
  readonly keyShape: readonly number[];
  readonly dtype: FloatDType;
}

/** Which keys a causal query sees: those of some blocks of its sequence, up to the query itself. */
interface Pattern {
  readonly blockSize: number;
  /** Block numbers, −1 where there is none. */
  blocks(query: number, head: number): ArrayLike<number> & Iterable<number>;
}

/** Keys in a row, all in one block of the pattern, whose gradients are looked at. */
interface Run {
  readonly kvHead: number;
  /** The sequence's first row in `q` and `k`, and its length. */
  readonly firstRow: number;
  readonly tokens: number;
  /** Positions `begin … end − 1` in the sequence. */
  readonly begin: number;
  readonly end: number;
}

/** Bounds in float32, as in the conformance suite: `dk` and `dv` are sums over all queries. */
const F32_BOUND = { dq: 1e-5, dk: 1e-4, dv: 1e-4 };

/** No further keys are looked at after so many pairs of a query and a key that it sees. */
const CHECKED_PAIRS = 2 ** 20;

/** One query of one head and the keys that it sees, in float64. */
interface QueryRow {
  readonly q: Float64Array;
  readonly dOut: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
}

/** What the keys that a query sees weigh in the gradients, computed in one of several ways. */
interface Weights {
  /** `p_j = exp(scale·q·k_j − lse)` */
  readonly p: Float64Array;
  /** `ds_j = p_j (dOut·v_j − D)`, `D = dOut·out` */
  readonly ds: Float64Array;
}

const dotProduct = (x: Float64Array, y: Float64Array, at = 0): number => {
  let sum = 0;
  for (let c = 0; c < x.length; c++) sum += x[c] * y[at + c];
  return sum;
};

/** `Σ_j w_j x_j` over the rows of `x`. */
function weightedSum(weights: Float64Array, x: Float64Array, headDim: number): Float64Array {
  const sum = new Float64Array(headDim);
  for (let j = 0; j < weights.length; j++) {
    for (let c = 0; c < headDim; c++) sum[c] += weights[j] * x[j * headDim + c];
  }
  return sum;
}

/**
 * The weights of a query's keys: exact, and emulations of what a narrower dtype cannot avoid. As in the conformance suite
 * these are two: `p` and `ds` are rounded; `D` is made of an output that was rounded.
 */
function weightsOf({ q, dOut, k, v }: QueryRow, dtype: FloatDType): Weights[] {
  const headDim = q.length;
  const keys = k.length / headDim;
  const one = { heads: 1, kvHeads: 1, headDim, cuSeqlens: Int32Array.of(0, 1) };
  const inputs = { ...one, cuSeqlensK: Int32Array.of(0, keys), q, k, v, scale: 1 / Math.sqrt(headDim) };
  const [{ probabilities, lse }] = attentionRows(inputs, () => true);
  const p = Float64Array.from(probabilities);
  const dp = p.map((_, j) => dotProduct(dOut, v, j * headDim));
  const D = dotProduct(p, dp);
  const exact = { p, ds: p.map((x, j) => x * (dp[j] - D)) };
  if (dtype === "f32") return [exact];

  const round = (x: number): number => roundTo(dtype, x);
  const roundedD = dotProduct(dOut, weightedSum(p, v, headDim).map(round));
  const fromLse = p.map((x) => x * Math.exp(lse - Math.fround(lse)));
  return [
    exact,
    { p: p.map(round), ds: exact.ds.map(round) },
    { p: fromLse, ds: fromLse.map((x, j) => x * (dp[j] - roundedD)) },
  ];
}

/** Compares the gradients of some keys, and of the queries that see them, with the oracle. */
class GradientComparison {
  readonly #host: HostTensors;
  readonly #pattern: Pattern;
  readonly #comparisons = { dq: new Comparison(), dk: new Comparison(), dv: new Comparison() };
  readonly #queryRows = new Set<number>();
  #pairs = 0;
  #keys = 0;

  constructor(host: HostTensors, pattern: Pattern) {
    this.#host = host;
    this.#pattern = pattern;
  }

  /** Pairs of a query and a key that it sees, of all queries so far. */
  get pairs(): number {
    return this.#pairs;
  }

  /** Rows of `dk` that were looked at. */
  get keys(): number {
    return this.#keys;
  }

  /** Rows of `dq` that were looked at. */
  get queries(): number {
    return this.#queryRows.size;
  }

  /** Looks at a run of keys, and at every query of the sequence that sees them. */
  add(run: Run): void {
    const { data, queryShape, keyShape, dtype } = this.#host;
    const [, heads, headDim] = queryShape;
    const group = heads / keyShape[1];
    const { kvHead, firstRow, tokens, begin, end } = run;
    const gather = this.#gatherer(run);
    const block = Math.floor(begin / this.#pattern.blockSize);
    // One sum for each way to compute the weights.
    const ways = dtype === "f32" ? 1 : 3;
    const sums = () => Array.from({ length: ways }, () => new Float64Array((end - begin) * headDim));
    const dk = sums();
    const dv = sums();
    let cancelling = 0;
    for (let position = begin; position < tokens; position++) {
      const query = firstRow + position;
      for (let head = kvHead * group; head < (kvHead + 1) * group; head++) {
        const blocks = [...this.#pattern.blocks(query, head)];
        if (!blocks.includes(block)) continue;
        const at = [head, query, 1] as const;
        const { k, v, offset } = gather(blocks, position);
        const q = headValues(data.q, queryShape, dtype, at);
        const dOut = headValues(data.dOut, queryShape, dtype, at);
        const weights = weightsOf({ q, dOut, k, v }, dtype);
        this.#addQuery(at, weights, k);
        const seen = Math.min(end, position + 1) - begin;
        weights.forEach(({ p, ds }, way) => {
          for (let key = 0; key < seen; key++) {
            const [pj, dsj] = [p[offset + key], ds[offset + key] / Math.sqrt(headDim)];
            for (let c = 0; c < headDim; c++) {
              dv[way][key * headDim + c] += pj * dOut[c];
              dk[way][key * headDim + c] += dsj * q[c];
            }
          }
        });
        cancelling += this.#cancelling(weights[0].p.subarray(offset, offset + seen));
        this.#pairs += k.length / headDim;
      }
    }
    const keys = [kvHead, firstRow + begin, end - begin] as const;
    this.#compare("dk", headValues(data.dk, keyShape, dtype, keys), dk, cancelling);
    this.#compare("dv", headValues(data.dv, keyShape, dtype, keys), dv, 0);
    this.#keys += end - begin;
  }

  judge(): GradientErrors {
    const judged = (name: keyof GradientErrors) =>
      this.#comparisons[name].judge(this.#host.dtype, F32_BOUND[name]);
    return { dq: judged("dq"), dk: judged("dk"), dv: judged("dv") };
  }

  /**
   * Gathers the keys and values of blocks of the run's sequence and key head that a query at a position sees. `offset` is the
   * place of the run's first key among them.
   */
  #gatherer({ kvHead, firstRow, tokens, begin }: Run) {
    const { data, keyShape, dtype } = this.#host;
    const { blockSize } = this.#pattern;
    const headDim = keyShape[2];
    const decoded = new Map<number, { readonly k: Float64Array; readonly v: Float64Array }>();
    const valuesOf = (block: number) => {
      const known = decoded.get(block);
      if (known) return known;
      const count = Math.min(blockSize, tokens - block * blockSize);
      const at = [kvHead, firstRow + block * blockSize, count] as const;
      const k = headValues(data.k, keyShape, dtype, at);
      const values = { k, v: headValues(data.v, keyShape, dtype, at) };
      decoded.set(block, values);
      return values;
    };
    return (blocks: readonly number[], position: number) => {
      const counts = blocks.map((block) =>
        block < 0 ? 0 : Math.max(0, Math.min(blockSize, position + 1 - block * blockSize)),
      );
      const keys = counts.reduce((sum, count) => sum + count, 0);
      const [k, v] = [new Float64Array(keys * headDim), new Float64Array(keys * headDim)];
      let offset = 0;
      let next = 0;
      blocks.forEach((block, i) => {
        if (counts[i] === 0) return;
        const values = valuesOf(block);
        k.set(values.k.subarray(0, counts[i] * headDim), next * headDim);
        v.set(values.v.subarray(0, counts[i] * headDim), next * headDim);
        if (block === Math.floor(begin / blockSize)) offset = next + (begin % blockSize);
        next += counts[i];
      });
      return { k, v, offset };
    };
  }

  /** Looks at the gradient of one query, unless that was done. */
  #addQuery(
    [head, query, count]: readonly [head: number, query: number, count: number],
    weights: readonly Weights[],
    k: Float64Array,
  ): void {
    const { data, queryShape, dtype } = this.#host;
    const [, heads, headDim] = queryShape;
    const row = query * heads + head;
    if (this.#queryRows.has(row)) return;
    this.#queryRows.add(row);
    const scale = 1 / Math.sqrt(headDim);
    const dq = weights.map(({ ds }) => weightedSum(ds, k, headDim).map((x) => scale * x));
    const actual = headValues(data.dq, queryShape, dtype, [head, query, count]);
    this.#compare("dq", actual, dq, this.#cancelling(weights[0].p));
  }

  /** Compares with the exact sums, which come first; the first emulation rounds its results too. */
  #compare(
    name: keyof GradientErrors,
    actual: Float64Array,
    [reference, ...emulations]: readonly Float64Array[],
    cancelling: number,
  ): void {
    const { dtype } = this.#host;
    const rounded = emulations.map((x, i) => (i === 0 ? x.map((value) => roundTo(dtype, value)) : x));
    this.#comparisons[name].add(actual, reference, rounded, cancelling);
  }

  /**
   * Where a query sees one key, `dq` and `dk` are 0 exactly: the difference of terms of size `scale·√d·p`, and `scale·√d` is 1.
   * As in the conformance suite, errors are measured against a tenth of that at least.
   */
  #cancelling(p: Float64Array): number {
    return 0.01 * dotProduct(p, p) * this.#host.queryShape[2];
  }
}

/** Puts items into a random order. */
function shuffle<T>(items: T[], random: Generator): T[] {
  for (let i = items.length - 1; i > 0; i--) {
    const j = integer(random, i + 1);
    [items[i], items[j]] = [items[j], items[i]];
  }
  return items;
}

/** All runs that `split` makes of each sequence's length, for each key head, in random order. */
function randomRuns(
  cuSeqlens: Int32Array,
  kvHeads: number,
  split: (tokens: number) => { begin: number; end: number }[],
  random: Generator,
): Run[] {
  const runs = sequenceLengths(cuSeqlens).flatMap((tokens, sequence) =>
    split(tokens).flatMap((range) =>
      Array.from({ length: kvHeads }, (_, kvHead) => ({
        kvHead,
        firstRow: cuSeqlens[sequence],
        tokens,
        ...range,
      })),
    ),
  );
  return shuffle(runs, random);
}

/** Whole blocks in random order, but the last one of a sequence, which may be short, first. */
function blockRuns(cuSeqlens: Int32Array, kvHeads: number, blockSize: number, random: Generator): Run[] {
  const blocks = (tokens: number) =>
    Array.from({ length: Math.ceil(tokens / blockSize) }, (_, block) => ({
      begin: block * blockSize,
      end: Math.min(tokens, (block + 1) * blockSize),
    }));
  const runs = randomRuns(cuSeqlens, kvHeads, blocks, random);
  const last = runs.findIndex(({ end, tokens }) => end === tokens);
  [runs[0], runs[last]] = [runs[last], runs[0]];
  return runs;
}

/** The last keys of each sequence, as many as all that sees them can be looked at; few queries see them. */
function lastRuns(
  cuSeqlens: Int32Array,
  [heads, kvHeads]: readonly [number, number],
  random: Generator,
): Run[] {
  const last = (tokens: number) => {
    const keys = Math.max(1, Math.floor(CHECKED_PAIRS / (tokens * (heads / kvHeads))));
    return [{ begin: Math.max(0, tokens - keys), end: tokens }];
  };
  return randomRuns(cuSeqlens, kvHeads, last, random);
}

/** Looks at runs of keys, at least at so many of them, until there were pairs enough. */
function judgeRuns(host: HostTensors, pattern: Pattern, runs: readonly Run[], least: number) {
  const comparison = new GradientComparison(host, pattern);
  runs.forEach((run, i) => {
    if (i < least || comparison.pairs < CHECKED_PAIRS) comparison.add(run);
  });
  return comparison;
}

/** What tensors hold, on the host. */
async function download<N extends string>(tensors: Record<N, Tensor>): Promise<Record<N, TypedArray>> {
  const data: Partial<Record<N, TypedArray>> = {};
  for (const name in tensors) data[name] = await tensors[name].data();
  return data as Record<N, TypedArray>;
}

/** Runs something in a scope, outputs poisoned first, and brings the tensors that it returns to the host. */
async function computed<N extends string>(
  backend: Backend,
  run: () => Record<N, Tensor>,
): Promise<Record<N, TypedArray>> {
  const tensors = runPoisoned(backend, run);
  try {
    return await download(tensors);
  } finally {
    for (const name in tensors) tensors[name].dispose();
  }
}

/**
 * Runs causal MoBA and its gradients once, and those of dense attention if wanted, outputs poisoned first, and compares rows
 * with the definition (see `Backend.attendBackward`) in float64, of which nothing but the routing is the backend's. For MoBA
 * whole blocks of keys are drawn, at least one besides the last of a sequence, and all queries that chose them are
 * followed; for dense attention, where that would take every query, the last keys of sequences.
 */
export async function checkGradients(
  backend: Backend,
  { q, k, v, dOut }: GradientTensors,
  options: MobaOptions & { cuSeqlens: Int32Array },
  { dense }: { dense: boolean },
  random: Generator,
): Promise<GradientCheck> {
  const { cuSeqlens, blockSize } = options;
  const [, heads] = q.shape;
  const kvHeads = k.shape[1];
  const inputs = await download({ q, k, v, dOut });
  const hostOf = (gradients: Record<keyof GradientErrors, TypedArray>): HostTensors => ({
    data: { ...inputs, ...gradients },
    queryShape: q.shape,
    keyShape: k.shape,
    dtype: q.dtype,
  });

  const { indices, ...gradients } = await computed(backend, () => {
    const { out, lse, routing } = backend.moba(q, k, v, options);
    const { dq, dk, dv } = backend.attendBackward(dOut, q, k, v, out, lse, routing);
    return { dq, dk, dv, indices: routing.indices };
  });
  const slots = indices.length / (q.shape[0] * heads);
  const routed: Pattern = {
    blockSize,
    blocks: (query, head) =>
      indices.subarray((query * heads + head) * slots, (query * heads + head + 1) * slots),
  };
  const runs = blockRuns(cuSeqlens, kvHeads, blockSize, random);
  const comparison = judgeRuns(hostOf(gradients), routed, runs, 2);
  const judged: { moba: GradientErrors; dense?: GradientErrors } = { moba: comparison.judge() };

  if (dense) {
    const denseGradients = await computed(backend, () => {
      const { out, lse } = backend.attention(q, k, v, { cuSeqlens });
      const { dq, dk, dv } = backend.attentionBackward(dOut, q, k, v, out, lse, { cuSeqlens });
      return { dq, dk, dv };
    });
    const everything = { blockSize: Math.max(...sequenceLengths(cuSeqlens)), blocks: () => [0] };
    const lastKeys = lastRuns(cuSeqlens, [heads, kvHeads], random);
    judged.dense = judgeRuns(hostOf(denseGradients), everything, lastKeys, 1).judge();
  }
  const errors = Object.values(judged).flatMap(({ dq, dk, dv }) => [dq, dk, dv]);
  return {
    keys: comparison.keys,
    queries: comparison.queries,
    ...judged,
    passed: errors.every(({ error, bound }) => error <= bound),
  };
}

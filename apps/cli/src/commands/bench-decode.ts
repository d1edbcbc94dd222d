import {
  type AttentionResult,
  type Backend,
  type CuSeqlens,
  cuSeqlensFromLengths,
  type DType,
  type FloatDType,
  storageArray,
  type Tensor,
} from "@moba-js/tensor";
import { isMeasured, type MeasuredBackend } from "../measured-backend.js";
import { normalTensor } from "../normal-tensor.js";
import { count, duration, type Output, percent, table } from "../output.js";
import { type Generator, generator, integer } from "../random.js";
import { RandomSequences } from "../random-sequences.js";
import { decodeWork, leastTime } from "../roofline.js";
import { judgeRows, type RowCheck, runPoisoned } from "../row-check.js";
import { median, timeSteadily } from "../timing.js";
import { checkedRows, checkText, timeKernels } from "./bench.js";

/** Options of `moba bench decode`. */
export interface BenchDecodeOptions {
  /** Keys in the cache, the new one included, for each case. */
  readonly tokens: readonly number[];
  readonly batch: number;
  readonly heads: number;
  /** As many as `heads` when not given. */
  readonly kvHeads?: number;
  readonly dim: number;
  readonly blockSize: number;
  readonly topK: number;
  readonly dtype: FloatDType;
  readonly repeats: number;
  readonly seed: number;
  /** Whether dense attention is run too. */
  readonly dense: boolean;
}

/** Steps whose time is one sample, on a backend that can capture them. */
const STEPS = 20;

/** Device milliseconds of one of the replays of captured work, sample by sample. */
async function timeReplays(
  backend: MeasuredBackend,
  captured: { replay(): void },
  repeats: number,
): Promise<number[]> {
  const replays = () => {
    for (let i = 0; i < STEPS; i++) captured.replay();
  };
  await backend.time(replays);
  const samples: number[] = [];
  while (samples.length < repeats) samples.push((await backend.time(replays)) / STEPS);
  return samples;
}

/** Device milliseconds of one run of `operation`, captured where the backend can, sample by sample. */
async function timeOperation(backend: Backend, operation: () => unknown, repeats: number): Promise<number[]> {
  if (!isMeasured(backend)) return timeSteadily(backend, operation, repeats);
  const run = () =>
    backend.scope(() => {
      operation();
    });
  run(); // loads the kernels
  const graph = backend.capture(run);
  const samples = await timeReplays(backend, graph, repeats);
  graph.dispose();
  return samples;
}

/** What came of one case; nothing is timed when the check failed. */
interface DecodeResult {
  readonly check: RowCheck;
  readonly timing?: {
    readonly samples: { readonly moba: readonly number[]; readonly dense?: readonly number[] };
    readonly kernels: Awaited<ReturnType<typeof timeKernels>>;
  };
}

/** Steps over keys in a row, by the operations that every backend has. */
async function decodeTensors(
  backend: Backend,
  tokens: number,
  options: BenchDecodeOptions,
  random: Generator,
): Promise<DecodeResult> {
  const { batch, heads, kvHeads = heads, dim: headDim, blockSize, topK, dtype, repeats } = options;
  const perSequence = (value: number) => new Array<number>(batch).fill(value);
  const cuSeqlens = cuSeqlensFromLengths(perSequence(1));
  const cuSeqlensK = cuSeqlensFromLengths(perSequence(tokens));
  const cuCentroids = cuSeqlensFromLengths(perSequence(Math.ceil(tokens / blockSize)));
  const make = (rows: number, width: number) => normalTensor(backend, random, [rows, width, headDim], dtype);
  using q = make(batch, heads);
  using k = make(batch * tokens, kvHeads);
  using v = make(batch * tokens, kvHeads);
  using newK = make(batch, kvHeads);
  using newV = make(batch, kvHeads);
  using centroids = backend.centroids(k, { cuSeqlens: cuSeqlensK, blockSize });
  const rows = { cuSeqlens, offsets: Array.from({ length: batch }, (_, s) => s * tokens + tokens - 1) };
  const append = { cuSeqlens, offsets: perSequence(tokens - 1), cuCentroids, blockSize };
  const step = () => {
    backend.copyRows(k, newK, rows);
    backend.copyRows(v, newV, rows);
    backend.updateCentroids(centroids, newK, append);
    const routing = backend.routeCentroids(q, centroids, {
      cuSeqlens,
      cuSeqlensK,
      cuCentroids,
      blockSize,
      topK,
    });
    return { ...backend.attend(q, k, v, routing), routing };
  };
  const dense = () => backend.attention(q, k, v, { cuSeqlens, cuSeqlensK });

  const sampled = Array.from({ length: Math.min(batch * heads, checkedRows(tokens)) }, () => {
    const query = integer(random, batch);
    return { query, head: integer(random, heads), firstKey: query * tokens, keys: tokens };
  });
  const first = runPoisoned(backend, () => ({ moba: step(), ...(options.dense && { dense: dense() }) }));
  const outputs = {
    ...(first.dense && { dense: first.dense.out }),
    moba: first.moba.out,
    indices: first.moba.routing.indices,
  };
  const check = await judgeRows({ q, k, v }, outputs, sampled, { blockSize, topK });
  const made = [outputs.moba, first.moba.lse, outputs.indices, first.dense?.out, first.dense?.lse];
  for (const tensor of made) tensor?.dispose();
  if (!check.passed) return { check };

  const kernels = isMeasured(backend) ? await timeKernels(backend, step, repeats) : [];
  const samples = {
    moba: await timeOperation(backend, step, repeats),
    ...(options.dense && { dense: await timeOperation(backend, dense, repeats) }),
  };
  return { check, timing: { samples, kernels } };
}

/** What a backend that keeps keys and values in pages has beyond the contract: see `CudaBackend`. */
interface PagedBackend extends MeasuredBackend {
  pagedCache(options: {
    readonly sequences: number;
    readonly pages: number;
    readonly blockSize: number;
    readonly capacity: number;
    readonly kvHeads: number;
    readonly headDim: number;
    readonly dtype: FloatDType;
  }): PagedCache;
}

interface PagedCache extends Disposable {
  append(k: Tensor, v: Tensor, options: { cuSeqlens: CuSeqlens }): void;
  decode(q: Tensor, k: Tensor, v: Tensor, options: { topK: number }): AttentionResult;
  capture(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    options: { topK: number },
  ): AttentionResult & Disposable & { replay(): void };
}

const isPaged = (backend: Backend): backend is PagedBackend => isMeasured(backend) && "pagedCache" in backend;

/** Sequences whose rows are checked, where there are many. */
const CHECKED_SEQUENCES = 4;

/** Some rows of a tensor `[rows, heads, d]`. */
async function rowsOf<D extends DType>(tensor: Tensor<D>, rows: readonly number[]): Promise<Tensor<D>> {
  const [, heads, headDim] = tensor.shape;
  const width = heads * headDim;
  const data = await tensor.data();
  const some = storageArray(tensor.dtype, rows.length * width);
  for (const [i, row] of rows.entries()) some.set(data.subarray(row * width, (row + 1) * width), i * width);
  return tensor.backend.tensor(some, [rows.length, heads, headDim], tensor.dtype);
}

/** Steps of a paged cache, captured once and replayed while its sequences grow. */
class PagedCase implements Disposable {
  readonly #q: Tensor<FloatDType>;
  readonly #newK: Tensor<FloatDType>;
  readonly #newV: Tensor<FloatDType>;
  /** Those before the first step. */
  readonly #keys: RandomSequences;
  readonly #values: RandomSequences;
  readonly #sequences: readonly number[];

  constructor(
    private readonly backend: PagedBackend,
    private readonly tokens: number,
    private readonly options: BenchDecodeOptions,
    private readonly random: Generator,
  ) {
    const { batch, heads, kvHeads = heads, dim: headDim, dtype } = options;
    const make = (width: number) => normalTensor(backend, random, [batch, width, headDim], dtype);
    this.#q = make(heads);
    this.#newK = make(kvHeads);
    this.#newV = make(kvHeads);
    const extents = { sequences: batch, tokens: tokens - 1, heads: kvHeads, headDim, dtype };
    this.#keys = new RandomSequences(backend, random, extents);
    this.#values = new RandomSequences(backend, random, extents);
    this.#sequences = Array.from({ length: batch }, (_, s) => s);
  }

  async run(): Promise<DecodeResult> {
    const result = await this.#decode();
    if (!result.timing || !this.options.dense) return result;
    const { samples, kernels } = result.timing;
    return { ...result, timing: { samples: { ...samples, dense: await this.#timeDense() }, kernels } };
  }

  [Symbol.dispose](): void {
    for (const made of [this.#q, this.#newK, this.#newV, this.#keys, this.#values]) made[Symbol.dispose]();
  }

  async #decode(): Promise<DecodeResult> {
    const { topK, repeats } = this.options;
    const [q, k, v] = [this.#q, this.#newK, this.#newV];
    // Room for the step that is checked, those that are timed, and one more for each time that kernels are.
    using cache = this.#cache(this.tokens + STEPS * (repeats + 1) + repeats);
    using step = cache.capture(q, k, v, { topK });
    using out = step.out;
    using _lse = step.lse;
    step.replay();
    const check = await this.#judge(out);
    if (!check.passed) return { check };
    const kernels = await timeKernels(this.backend, () => cache.decode(q, k, v, { topK }), repeats);
    const samples = { moba: await timeReplays(this.backend, step, repeats) };
    return { check, timing: { samples, kernels } };
  }

  /** A cache before the first step. */
  #cache(capacity: number): PagedCache {
    const { batch, heads, kvHeads = heads, dim: headDim, blockSize, dtype } = this.options;
    const pages = batch * Math.ceil(capacity / blockSize);
    const shape = { sequences: batch, pages, capacity, blockSize, kvHeads, headDim, dtype };
    const cache = this.backend.pagedCache(shape);
    for (const sequence of this.#sequences) {
      using k = this.#keys.packed([sequence], 0);
      using v = this.#values.packed([sequence], 0);
      const counts = this.#sequences.map((s) => (s === sequence ? this.tokens - 1 : 0));
      cache.append(k, v, { cuSeqlens: cuSeqlensFromLengths(counts) });
    }
    return cache;
  }

  /** Queries, keys and values of some sequences after the first step, in a row. */
  async #tensorsOf(sequences: readonly number[]) {
    const lengths = (length: number) => cuSeqlensFromLengths(sequences.map(() => length));
    const packed = { cuSeqlens: lengths(1), cuSeqlensK: lengths(this.tokens) };
    const offsets = sequences.map((_, i) => (i + 1) * this.tokens - 1);
    const withLast = async (before: RandomSequences, last: Tensor) => {
      const tensor = before.packed(sequences, 1);
      using rows = await rowsOf(last, sequences);
      this.backend.copyRows(tensor, rows, { cuSeqlens: packed.cuSeqlens, offsets });
      return tensor;
    };
    const q = await rowsOf(this.#q, sequences);
    const k = await withLast(this.#keys, this.#newK);
    return { q, k, v: await withLast(this.#values, this.#newV), packed };
  }

  /** Checks rows of some sequences. The blocks that they should attend are chosen anew, from all of their keys. */
  async #judge(out: Tensor<FloatDType>): Promise<RowCheck> {
    const { heads, blockSize, topK } = this.options;
    const sequences = sample(this.random, this.#sequences, CHECKED_SEQUENCES);
    const { q, k, v, packed } = await this.#tensorsOf(sequences);
    using moba = await rowsOf(out, sequences);
    const { indices } = this.backend.route(q, k, { ...packed, blockSize, topK });
    const dense = this.options.dense ? this.backend.attention(q, k, v, packed) : undefined;
    const rows = Array.from({ length: Math.min(sequences.length * heads, checkedRows(this.tokens)) }, () => {
      const query = integer(this.random, sequences.length);
      const head = integer(this.random, heads);
      return { query, head, firstKey: query * this.tokens, keys: this.tokens };
    });
    const outputs = { moba, indices, ...(dense && { dense: dense.out }) };
    const check = await judgeRows({ q, k, v }, outputs, rows, { blockSize, topK });
    for (const tensor of [q, k, v, indices, dense?.out, dense?.lse]) tensor?.dispose();
    return check;
  }

  async #timeDense(): Promise<number[]> {
    const { q, k, v, packed } = await this.#tensorsOf(this.#sequences);
    const attention = () => this.backend.attention(q, k, v, packed);
    const samples = await timeOperation(this.backend, attention, this.options.repeats);
    for (const tensor of [q, k, v]) tensor.dispose();
    return samples;
  }
}

/** So many of the items, or all, in random order. */
function sample<T>(random: Generator, items: readonly T[], count: number): T[] {
  const left = [...items];
  return Array.from({ length: Math.min(count, left.length) }, () => {
    const [item] = left.splice(integer(random, left.length), 1);
    return item;
  });
}

/** {@link PagedCase}, its memory given back. */
async function decodePaged(
  backend: PagedBackend,
  tokens: number,
  options: BenchDecodeOptions,
  random: Generator,
): Promise<DecodeResult> {
  using paged = new PagedCase(backend, tokens, options, random);
  return await paged.run();
}

async function runCase(backend: Backend, tokens: number, options: BenchDecodeOptions) {
  const { batch, heads, kvHeads = heads, dim: headDim, blockSize, topK, dtype, seed } = options;
  const random = generator("bench decode", seed, tokens);
  const { check, timing } = isPaged(backend)
    ? await decodePaged(backend, tokens, options, random)
    : await decodeTensors(backend, tokens, options, random);
  if (!timing) return { check };
  const { samples, kernels } = timing;
  const work = decodeWork({ batch, tokens, heads, kvHeads, headDim, blockSize, topK, dtype });
  const share = (name: "moba" | "dense", milliseconds: number): number | null => {
    const least = leastTime(backend.device, dtype, work[name]);
    return least === undefined ? null : least / milliseconds;
  };
  const medians = { moba: median(samples.moba), ...(samples.dense && { dense: median(samples.dense) }) };
  return {
    check,
    samples,
    median: medians,
    work,
    roofline: {
      moba: share("moba", medians.moba),
      ...(medians.dense !== undefined && { dense: share("dense", medians.dense) }),
    },
    captured: isMeasured(backend),
    paged: isPaged(backend),
    ...(kernels.length > 0 && { kernels }),
  };
}

/**
 * `moba bench decode`: one decoding step of each sequence of a batch, that is to append a key and a value to the cache,
 * update its centroid, route and attend: of a paged cache where the backend has one, and captured and replayed where it can.
 * Dense attention over the same keys beside it. The first step is checked against the oracle.
 * @returns whether every check passed; a case is not timed when its own did not.
 */
export async function benchDecode(
  backend: Backend,
  options: BenchDecodeOptions,
  output: Output,
): Promise<boolean> {
  const { batch, heads, kvHeads = heads, dim: headDim, blockSize, topK, dtype, repeats, seed } = options;
  const cases: ({ tokens: number } & Awaited<ReturnType<typeof runCase>>)[] = [];
  using progress = output.progress("bench decode", options.tokens.length);
  for (const tokens of options.tokens) {
    cases.push({ tokens, ...(await runCase(backend, tokens, options)) });
    progress.step(`N = ${count(tokens)}`);
  }
  output.print(`decoding on ${backend.name} (${backend.device}), seed ${seed}`);
  output.print(
    `${batch} sequence(s), H = ${heads}, Hkv = ${kvHeads}, d = ${headDim}, B = ${blockSize}, k = ${topK}, ${dtype}`,
  );
  const time = (milliseconds: number | undefined) =>
    milliseconds === undefined ? "" : duration(milliseconds);
  for (const { tokens, check } of cases) output.print(`N = ${count(tokens)}: ${checkText(check)}`);
  output.print();
  output.print(
    table([
      [`a step, of ${repeats} samples`, "MoBA", "of roofline", "dense", "dense / MoBA"],
      ...cases.map(({ tokens, ...result }) => {
        if (!("median" in result)) return [`N = ${count(tokens)}`, "not timed: the check failed", "", "", ""];
        const { moba, dense } = result.median;
        const share = result.roofline.moba;
        return [
          `N = ${count(tokens)}`,
          time(moba),
          share === null ? "" : percent(share, 0),
          time(dense),
          dense === undefined ? "" : (dense / moba).toFixed(2),
        ];
      }),
    ]),
  );
  const shape = { batch, heads, kvHeads, headDim, blockSize, topK, dtype };
  output.result({ backend: backend.name, device: backend.device, seed, ...shape, repeats, cases });
  return cases.every(({ check }) => check.passed);
}

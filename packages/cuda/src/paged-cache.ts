import {
  ArgumentError,
  type AttentionResult,
  type Backend,
  type CuSeqlensInput,
  checkAttention,
  checkCuSeqlens,
  checkDType,
  checkExtents,
  checkOptions,
  checkPositiveInteger,
  checkTensor,
  type DType,
  DTypeError,
  FLOAT_DTYPES,
  type FloatDType,
  ShapeError,
  type Tensor,
} from "@moba-js/tensor";
import { appendPaged, decodePaged, type PagedMemory } from "../kernels/decode/decode.js";
import { type Device, pointerOf } from "./device.js";
import type { Graph } from "./graph.js";

/** Extents of a {@link PagedCache}. */
export interface PagedCacheOptions {
  /** Sequences that are decoded together. Default 1. */
  readonly sequences?: number;
  /** Pages that the sequences share. */
  readonly pages: number;
  /** Tokens of a page: a multiple of `blockSize`. Default: one block. */
  readonly pageSize?: number;
  /** `B`, keys of a block. */
  readonly blockSize: number;
  /** The most tokens that one sequence may come to. Default: as many as all pages hold. */
  readonly capacity?: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Dtype of queries, keys and values. Default bf16. */
  readonly dtype?: FloatDType;
}

/** How the new queries of a step attend. */
export interface PagedDecodeOptions {
  /** `k`, blocks of each query, the own one among them. */
  readonly topK: number;
  /** Factor of the scores. Default `1/√d`. */
  readonly scale?: number;
}

/** A captured step of a {@link PagedCache}: each replay appends what `k` and `v` hold then, and attends for what `q` holds. */
export interface CapturedDecode extends AttentionResult, Disposable {
  /**
   * Enqueues one step.
   * @throws ArgumentError when pages are wanting or a sequence is full: nothing has changed then.
   */
  replay(): void;
  /** Gives the memory back that was kept for the step, not the tensors. */
  dispose(): void;
}

/** The page that nobody owns: places of the table that have none yet name it. */
const NO_PAGE = 0;

/**
 * Keys and values of several sequences of any lengths, in pages of one pool, with the running centroids of their blocks: for
 * decoding that stays sparse. A step appends the new keys and values, updates the centroids, routes each new query over all
 * blocks of its sequence, and attends to the keys of the `k` chosen ones (arXiv 2511.11571, section 2).
 */
export interface PagedCache {
  /** Tokens of each sequence; 0 of one that pauses. */
  readonly lengths: readonly number[];

  /** Pages that no sequence has. */
  readonly freePages: number;

  /**
   * Appends any number of tokens to each sequence, as prompts; one that pauses goes on from nothing.
   * @param k `[T, Hkv, d]`, the cache's dtype
   * @param v shape and dtype of `k`
   * @param options.cuSeqlens where each sequence's new tokens begin. Default: one sequence
   * @throws ArgumentError when pages are wanting or a sequence would be longer than the capacity: nothing has changed then.
   */
  append(k: Tensor, v: Tensor, options?: { cuSeqlens?: CuSeqlensInput }): void;

  /**
   * One step: appends the same number of new tokens to each sequence, and attends causally for each of them. For a sequence
   * that pauses, rows of `q`, `k`, `v` mean nothing, and the result is zeros with log-sum-exp −Infinity.
   * @param q `[sequences · added, H, d]`, the cache's dtype
   * @param k `[sequences · added, Hkv, d]`
   * @param v shape of `k`
   * @returns `out` like `q`; `lse` float32 `[sequences · added, H]`
   * @throws ArgumentError when pages are wanting or a sequence is full: nothing has changed then.
   */
  decode(q: Tensor, k: Tensor, v: Tensor, options: PagedDecodeOptions): AttentionResult;

  /**
   * Captures a step of {@link decode}, to be replayed while the sequences grow: for one or a few tokens at once, whose kernels
   * take less time than their launches.
   */
  capture(q: Tensor, k: Tensor, v: Tensor, options: PagedDecodeOptions): CapturedDecode;

  /** Ends a sequence: its pages are free for others, and it pauses until {@link append} begins a new one. */
  release(sequence: number): void;

  /** Gives the memory back. */
  dispose(): void;

  /** `using cache = …` disposes at the end of the block. */
  [Symbol.dispose](): void;
}

/** The cache on a device; `empty` makes tensors without values. */
export class DevicePagedCache implements PagedCache {
  readonly #memory: PagedMemory;
  readonly #capacity: number;
  readonly #dtype: FloatDType;
  readonly #free: number[];
  /** Pages of each sequence. */
  readonly #pages: number[][];
  /** Tokens of each sequence; of one that pauses −1. */
  readonly #lengths: number[];

  constructor(
    private readonly backend: Backend & { capture(run: () => void): Graph },
    private readonly device: Device,
    private readonly empty: <D extends DType>(shape: readonly number[], dtype: D) => Tensor<D>,
    options: PagedCacheOptions,
  ) {
    checkOptions(options);
    const {
      sequences = 1,
      pages,
      blockSize,
      pageSize = blockSize,
      kvHeads,
      headDim,
      dtype = "bf16",
    } = options;
    const { capacity = pages * pageSize } = options;
    for (const [name, value] of Object.entries({
      sequences,
      pages,
      blockSize,
      pageSize,
      capacity,
      kvHeads,
      headDim,
    })) {
      checkPositiveInteger(name, value);
    }
    checkDType("dtype", dtype, FLOAT_DTYPES);
    if (pageSize % blockSize !== 0)
      throw new ArgumentError("pageSize", pageSize, `a multiple of blockSize ${blockSize}`);
    const rows = (pages + 1) * pageSize;
    const pagesPerSequence = Math.min(pages, Math.ceil(capacity / pageSize));
    if (rows > 2 ** 31 - 1) throw new ArgumentError("pages", pages, "less than 2^31 tokens in all");
    this.#capacity = Math.min(capacity, pagesPerSequence * pageSize);
    this.#dtype = dtype;
    this.#memory = backend.scope(() => ({
      keys: empty([rows, kvHeads, headDim], dtype),
      values: empty([rows, kvHeads, headDim], dtype),
      centroids: empty([rows / blockSize, kvHeads, headDim], "f32"),
      pageTable: backend.zeros([sequences, pagesPerSequence], "i32"),
      lengths: backend.zeros([sequences], "i32"),
      pageSize,
      blockSize,
    }));
    this.#free = Array.from({ length: pages }, (_, i) => pages - i);
    this.#pages = Array.from({ length: sequences }, () => []);
    this.#lengths = new Array<number>(sequences).fill(0);
  }

  get lengths(): readonly number[] {
    return this.#lengths.map((length) => Math.max(0, length));
  }

  get freePages(): number {
    return this.#free.length;
  }

  append(k: Tensor, v: Tensor, options: { cuSeqlens?: CuSeqlensInput } = {}): void {
    checkOptions(options);
    this.#checkKeys("k", k);
    this.#checkKeys("v", v);
    checkExtents("v", v, k.shape, "that of k");
    const sequences = this.#lengths.length;
    const cuSeqlens = checkCuSeqlens("cuSeqlens", options.cuSeqlens, k.shape[0]);
    if (cuSeqlens.length !== sequences + 1) {
      throw new ArgumentError(
        "cuSeqlens",
        options.cuSeqlens,
        `${sequences + 1} entries for ${sequences} sequences`,
      );
    }
    const counts = this.#lengths.map((_, s) => cuSeqlens[s + 1] - cuSeqlens[s]);
    this.#reserve(counts.map((count, s) => Math.max(0, this.#lengths[s]) + count));
    const offsets = this.lengths;
    appendPaged(this.device, this.#memory, {
      k: k as Tensor<FloatDType>,
      v: v as Tensor<FloatDType>,
      cuSeqlens,
      offsets,
    });
    counts.forEach((count, s) => {
      if (count > 0) this.#lengths[s] = offsets[s] + count;
    });
    this.device.upload(pointerOf(this.#memory.lengths), Int32Array.from(this.#lengths));
  }

  decode(q: Tensor, k: Tensor, v: Tensor, options: PagedDecodeOptions): AttentionResult {
    const added = this.#checkStep(q, k, v, options);
    this.#reserve(this.#lengthsAfter(added));
    const result = this.backend.scope(() =>
      this.#step(q, k, v, options, Math.max(1, ...this.#lengthsAfter(added))),
    );
    this.#advance(added);
    return result;
  }

  capture(q: Tensor, k: Tensor, v: Tensor, options: PagedDecodeOptions): CapturedDecode {
    const added = this.#checkStep(q, k, v, options);
    let result: AttentionResult | undefined;
    const graph = this.backend.capture(() => {
      result = this.backend.scope(() => this.#step(q, k, v, options, this.#capacity));
    });
    const dispose = () => graph.dispose();
    return {
      ...(result as unknown as AttentionResult),
      replay: () => {
        this.#reserve(this.#lengthsAfter(added));
        graph.replay();
        this.#advance(added);
      },
      dispose,
      [Symbol.dispose]: dispose,
    };
  }

  release(sequence: number): void {
    if (!(sequence in this.#lengths)) {
      throw new ArgumentError("sequence", sequence, `a sequence from 0 to ${this.#lengths.length - 1}`);
    }
    this.#free.push(...this.#pages[sequence].splice(0).reverse());
    this.#lengths[sequence] = -1;
    this.device.upload(pointerOf(this.#memory.lengths) + 4 * sequence, Int32Array.of(-1));
    this.#writeTable(sequence);
  }

  dispose(): void {
    const { keys, values, centroids, pageTable, lengths } = this.#memory;
    for (const tensor of [keys, values, centroids, pageTable, lengths]) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #checkKeys(argument: string, tensor: Tensor): void {
    const [, kvHeads, headDim] = this.#memory.keys.shape;
    checkTensor(this.backend, argument, tensor, FLOAT_DTYPES, "[T, Hkv, d]");
    if (tensor.dtype !== this.#dtype)
      throw new DTypeError(argument, tensor.dtype, `${this.#dtype}, as the cache`);
    checkExtents(argument, tensor, [tensor.shape[0], kvHeads, headDim], "[T, Hkv, d] of the cache");
  }

  /** Checks a step. Returns the new tokens of each sequence. */
  #checkStep(q: Tensor, k: Tensor, v: Tensor, { topK, scale }: PagedDecodeOptions): number {
    checkPositiveInteger("topK", topK);
    this.#checkKeys("k", k);
    checkAttention(this.backend, q, k, v, { scale });
    const sequences = this.#lengths.length;
    const [tokens] = q.shape;
    if (tokens === 0 || tokens % sequences !== 0) {
      throw new ShapeError(
        "q",
        q.shape,
        `[T, H, d] with T a positive multiple of ${sequences}, the sequences of the cache`,
      );
    }
    if (k.shape[0] !== tokens) throw new ShapeError("k", k.shape, `[${tokens}, Hkv, d], T as in q`);
    return tokens / sequences;
  }

  /** Tokens of each sequence after a step. */
  #lengthsAfter(added: number): number[] {
    return this.#lengths.map((length) => (length < 0 ? 0 : length + added));
  }

  #advance(added: number): void {
    this.#lengths.forEach((length, s) => {
      if (length >= 0) this.#lengths[s] = length + added;
    });
  }

  #step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    { topK, scale }: PagedDecodeOptions,
    mostKeys: number,
  ): AttentionResult {
    const problem = checkAttention(this.backend, q, k, v, { scale });
    const outputs = {
      out: this.empty(q.shape, problem.dtype),
      lse: this.empty([problem.tokens, problem.heads], "f32"),
    };
    decodePaged(this.device, this.#memory, { ...problem, topK, mostKeys }, outputs);
    return outputs;
  }

  /** Gives each sequence the pages for so many tokens in all, or throws and gives none. */
  #reserve(lengths: readonly number[]): void {
    const { pageSize } = this.#memory;
    const wanted = lengths.map((length, s) => {
      if (length > this.#capacity) {
        throw new ArgumentError(`tokens of sequence ${s}`, length, `at most ${this.#capacity}, the capacity`);
      }
      return Math.max(0, Math.ceil(length / pageSize) - this.#pages[s].length);
    });
    const pages = wanted.reduce((a, b) => a + b, 0);
    if (pages > this.#free.length) {
      throw new ArgumentError("pages", pages, `at most ${this.#free.length}, as many as are free`);
    }
    wanted.forEach((count, s) => {
      if (count === 0) return;
      this.#pages[s].push(...this.#free.splice(-count).reverse());
      this.#writeTable(s);
    });
  }

  #writeTable(sequence: number): void {
    const { pageTable } = this.#memory;
    const row = new Int32Array(pageTable.shape[1]).fill(NO_PAGE);
    row.set(this.#pages[sequence]);
    this.device.upload(pointerOf(pageTable) + row.byteLength * sequence, row);
  }
}

import {
  ArgumentError,
  type Backend,
  type CuSeqlens,
  checkPositiveInteger,
  cuSeqlensFromLengths,
  type Tensor,
} from "@moba-js/tensor";
import { type AttentionConfig, layerAttention, type ModelConfig } from "./config.js";
import { Tape, Variable } from "./tape.js";
import type { KeySource, QueriesKeysValues, Transformer } from "./transformer.js";

/** What is kept of one layer. */
interface LayerCache {
  /** `[batch · capacity, Hkv, d]`; keys after rotation or convolution. */
  readonly k: Tensor;
  readonly v: Tensor;
  /** Of MoBA layers: running block means, float32 `[batch · capacity/B, Hkv, d]`. */
  readonly centroids: Tensor | undefined;
  /** Of layers with a key convolution: the last `W−1` keys before it, `[batch · (W−1), Hkv, d]`. */
  readonly history: Tensor | undefined;
}

/** Options of a {@link KvCache}. */
export interface KvCacheOptions {
  /** Sequences. Default 1. */
  readonly batch?: number;
  /** The most tokens that each sequence may come to. */
  readonly capacity: number;
}

/**
 * Keys and values of the tokens so far, for decoding: with them MoBA stays sparse. A new query routes by running centroids
 * over all past blocks and reads the keys of its `k` blocks only, so a token costs `O(k·B + n)`, not `O(N)`.
 *
 * Sequences are of any lengths, and each pass may bring each of them any number of tokens, or none. Memory is taken for
 * `capacity` tokens at once.
 */
export class KvCache {
  readonly #layers: readonly LayerCache[];
  readonly #lengths: number[];
  /** Tokens that each sequence has room for: a multiple of `B`. */
  readonly #room: number;

  constructor(
    readonly model: Transformer,
    options: KvCacheOptions,
  ) {
    const { batch = 1, capacity } = options;
    checkPositiveInteger("batch", batch);
    checkPositiveInteger("capacity", capacity);
    const { config, backend, compute } = model;
    const { layers, kvHeads, headDim } = config;
    const blockSize = blockSizeOf(config);
    this.#room = Math.ceil(capacity / blockSize) * blockSize;
    this.#lengths = new Array<number>(batch).fill(0);
    const rows = (count: number, dtype = compute) => backend.zeros([batch * count, kvHeads, headDim], dtype);
    this.#layers = Array.from({ length: layers }, (_, layer) => {
      const attention = layerAttention(config, layer);
      const isMoba = attention.kind === "moba";
      return {
        k: rows(this.#room),
        v: rows(this.#room),
        centroids: isMoba ? rows(this.#room / blockSize, "f32") : undefined,
        history: isMoba && attention.convWidth > 1 ? rows(attention.convWidth - 1) : undefined,
      };
    });
  }

  /** Tokens of each sequence so far. */
  get lengths(): readonly number[] {
    return [...this.#lengths];
  }

  /**
   * A forward pass over the next tokens of each sequence, which see the tokens before them. When it throws, the cache is good
   * for nothing but `dispose`.
   * @param sequences new tokens of each sequence; none for one that pauses
   * @returns what `Transformer.hidden` gives, for the new tokens one sequence after the other: `[T, C]`
   * @throws ArgumentError when there are more tokens than room
   */
  extend(sequences: readonly ArrayLike<number>[]): Tensor {
    const { model } = this;
    const { backend } = model;
    if (sequences.length !== this.#lengths.length) {
      throw new ArgumentError("sequences", sequences, `new tokens for ${this.#lengths.length} sequences`);
    }
    const counts = sequences.map((tokens, s) => {
      const left = this.#room - this.#lengths[s];
      if (tokens.length > left) {
        throw new ArgumentError(
          `sequences[${s}]`,
          tokens.length,
          `at most ${left} tokens: the cache has no more room`,
        );
      }
      return tokens.length;
    });
    const tokens = sequences.flatMap((sequence) => Array.from(sequence));
    const positions = counts.flatMap((count, s) =>
      Array.from({ length: count }, (_, i) => this.#lengths[s] + i),
    );
    const hidden = backend.scope(() => {
      const batch = {
        tokens: backend.tensor(tokens, [tokens.length], "i32"),
        positions: backend.tensor(positions, [tokens.length], "i32"),
        keys: new CachedKeys(backend, this.#layers, this.#lengths, counts, this.#room),
      };
      return model.hidden(new Tape(backend, { record: false }), batch).value;
    });
    counts.forEach((count, s) => {
      this.#lengths[s] += count;
    });
    return hidden;
  }

  /** Gives the memory back. */
  dispose(): void {
    for (const { k, v, centroids, history } of this.#layers) {
      for (const tensor of [k, v, centroids, history]) tensor?.dispose();
    }
  }

  /** `using cache = …` disposes at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

const blockSizeOf = ({ attention }: ModelConfig): number =>
  attention.kind === "moba" ? attention.blockSize : 1;

/** The keys of a cache for one forward pass, which adds to them. */
class CachedKeys implements KeySource {
  /** Where each sequence's new tokens begin. */
  readonly #cuSeqlens: CuSeqlens;
  /** The same, and where its keys begin, with the free room of each sequence as a sequence without queries. */
  readonly #packing: { readonly cuSeqlens: CuSeqlens; readonly cuSeqlensK: CuSeqlens };
  /** The first row of the cache that each sequence's new keys take. */
  readonly #rows: readonly number[];

  constructor(
    private readonly backend: Backend,
    private readonly layers: readonly LayerCache[],
    /** Tokens before this pass. */
    private readonly lengths: readonly number[],
    counts: readonly number[],
    private readonly room: number,
  ) {
    this.#cuSeqlens = cuSeqlensFromLengths(counts);
    this.#packing = {
      cuSeqlens: cuSeqlensFromLengths(counts.flatMap((count) => [count, 0])),
      cuSeqlensK: cuSeqlensFromLengths(
        lengths.flatMap((length, s) => [length + counts[s], room - length - counts[s]]),
      ),
    };
    this.#rows = lengths.map((length, s) => s * room + length);
  }

  attend(
    _tape: Tape,
    layer: number,
    attention: AttentionConfig,
    { q, k, v }: QueriesKeysValues,
    conv: Variable | undefined,
  ): Variable {
    const { backend } = this;
    const cache = this.layers[layer];
    const keys = conv ? this.#convolve(k.value, conv.value, cache.history) : k.value;
    backend.copyRows(cache.k, keys, { cuSeqlens: this.#cuSeqlens, offsets: this.#rows });
    backend.copyRows(cache.v, v.value, { cuSeqlens: this.#cuSeqlens, offsets: this.#rows });
    return new Variable(this.#attendCached(attention, q.value, keys, cache));
  }

  #attendCached(attention: AttentionConfig, q: Tensor, newKeys: Tensor, cache: LayerCache): Tensor {
    const { backend } = this;
    const packing = this.#packing;
    switch (attention.kind) {
      case "window":
        return backend.windowAttention(q, cache.k, cache.v, { ...packing, window: attention.window }).out;
      case "dense":
        return backend.attention(q, cache.k, cache.v, packing).out;
      case "moba": {
        const { blockSize, topK } = attention;
        const centroids = cache.centroids as Tensor;
        const blocks = this.room / blockSize;
        const rooms = this.lengths.map((_, s) => s * blocks);
        backend.updateCentroids(centroids, newKeys, {
          cuSeqlens: this.#cuSeqlens,
          offsets: this.lengths,
          cuCentroids: [...rooms, rooms.length * blocks],
          blockSize,
        });
        // A sequence's free room has no centroids.
        const cuCentroids = [0, ...rooms.flatMap((begin) => [begin + blocks, begin + blocks])];
        const routing = backend.routeCentroids(q, centroids, { ...packing, blockSize, topK, cuCentroids });
        return backend.attend(q, cache.k, cache.v, routing).out;
      }
    }
  }

  /** The key convolution, going on from the keys before; keeps the last ones for the next pass. */
  #convolve(k: Tensor, weights: Tensor, kept: Tensor | undefined): Tensor {
    const { backend } = this;
    const cuSeqlens = this.#cuSeqlens;
    if (!kept) return backend.keyConv(k, weights, { cuSeqlens });
    const [width, kvHeads, headDim] = weights.shape;
    const history = kept.reshape([this.lengths.length, width - 1, kvHeads, headDim]);
    const convolved = backend.keyConv(k, weights, { cuSeqlens, history });
    const next = backend.keyConvHistory(k, width, { cuSeqlens, history });
    backend.copyRows(kept, next.reshape(kept.shape), { offsets: [0] });
    return convolved;
  }
}

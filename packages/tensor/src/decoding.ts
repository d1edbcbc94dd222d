import { type DType, FLOAT_DTYPES, type FloatDType } from "./dtype.js";
import { ArgumentError, DTypeError, ShapeError, UnsupportedError } from "./errors.js";
import { type NeuralOperation, NeuralOperations } from "./neural.js";
import {
  blockCount,
  type CuSeqlens,
  type CuSeqlensInput,
  checkCuSeqlens,
  cuBlocks,
  sequenceLengths,
} from "./packed.js";
import {
  checkExtents,
  checkOptions,
  checkPacking,
  checkPositiveInteger,
  checkTensor,
  type PackedOptions,
} from "./problem.js";
import { Routing } from "./routing.js";
import type { Tensor } from "./tensor.js";

/** The operations on a cache of keys and values, by the names that `Backend.supports` takes. */
export type DecodingOperation = "copyRows" | "updateCentroids" | "routeCentroids";

/** Every decoding operation, in the order of the class. */
export const DECODING_OPERATIONS: readonly DecodingOperation[] = [
  "copyRows",
  "updateCentroids",
  "routeCentroids",
];

/** Where the new tokens of each sequence go. */
export interface AppendOptions {
  /** Where each sequence's new tokens begin. Default: one sequence. */
  cuSeqlens?: CuSeqlensInput;
  /** One integer a sequence: see the operation. */
  offsets: readonly number[];
}

/** Options of {@link DecodingOperations.updateCentroids}. */
export interface UpdateCentroidsOptions extends AppendOptions {
  /** `B`, tokens a block, ≥ 1. */
  blockSize: number;
  /** Where each sequence's centroids begin. */
  cuCentroids: CuSeqlensInput;
}

/** Options of {@link DecodingOperations.routeCentroids}. */
export interface RouteCentroidsOptions extends PackedOptions {
  /** `B`, tokens a block, ≥ 1. */
  blockSize: number;
  /** `k`, blocks a query attends, its own included, ≥ 1. */
  topK: number;
  /** Where each sequence's centroids begin; there may be room for more. Default: as `Backend.centroids` lays them out. */
  cuCentroids?: CuSeqlensInput;
}

/** What {@link DecodingOperations.copyRows} hands to its kernel. */
export interface CopyRowsProblem {
  readonly target: Tensor<FloatDType>;
  readonly source: Tensor<FloatDType>;
  readonly cuSeqlens: CuSeqlens;
  readonly offsets: readonly number[];
}

/** What {@link DecodingOperations.updateCentroids} hands to its kernel. */
export interface UpdateCentroidsProblem {
  readonly centroids: Tensor<"f32">;
  readonly k: Tensor<FloatDType>;
  readonly blockSize: number;
  readonly cuSeqlens: CuSeqlens;
  readonly cuCentroids: CuSeqlens;
  readonly offsets: readonly number[];
}

/** What {@link DecodingOperations.routeCentroids} hands to its kernel. */
export interface RouteCentroidsProblem {
  readonly q: Tensor<FloatDType>;
  readonly centroids: Tensor<"f32">;
  readonly blockSize: number;
  readonly topK: number;
  /** Slots a row of the result has: `min(k, blocks of the longest sequence)`. */
  readonly slots: number;
  readonly cuSeqlens: CuSeqlens;
  readonly cuSeqlensK: CuSeqlens;
  readonly cuCentroids: CuSeqlens;
}

/**
 * The part of a `Backend` that a cache of keys and values is made of, for decoding token by token: a cache is a tensor with
 * room for more keys than there are, and a running mean for each of its blocks.
 *
 * The attention operations read such a cache in place: give the free room of each sequence as a sequence of its own that
 * has no queries. With rooms of `capacity` keys and `n_s` keys in use, `cuSeqlensK = [0, n_0, capacity, capacity + n_1, …]`.
 */
export abstract class DecodingOperations extends NeuralOperations {
  /** Whether an operation of this part is implemented; see `Backend.supports`. */
  abstract override supports(operation: NeuralOperation | DecodingOperation, dtype: DType): boolean;

  #checkSupport(operation: DecodingOperation, dtype: DType): void {
    if (!this.supports(operation, dtype)) throw new UnsupportedError(operation, dtype, this.name);
  }

  /**
   * Copies rows into a tensor, in place: row `i` of sequence `s` of the source becomes row `offsets[s] + i` of the target.
   * @param target `[R, Hkv, d]`, f32, f16 or bf16: changed
   * @param source `[T, Hkv, d]`, dtype of `target`
   * @throws ArgumentError when rows would fall outside the target
   */
  copyRows(target: Tensor, source: Tensor, options: AppendOptions): void {
    checkTensor(this, "target", target, FLOAT_DTYPES, "[R, Hkv, d]");
    checkTensor(this, "source", source, FLOAT_DTYPES, "[T, Hkv, d]");
    if (source.dtype !== target.dtype)
      throw new DTypeError("source", source.dtype, `${target.dtype}, as target`);
    const [tokens] = source.shape;
    checkExtents("source", source, [tokens, target.shape[1], target.shape[2]], "[T, Hkv, d]");
    const append = checkAppend(options, tokens);
    append.offsets.forEach((offset, s) => {
      const most = target.shape[0] - (append.cuSeqlens[s + 1] - append.cuSeqlens[s]);
      if (offset > most) {
        throw new ArgumentError(
          `offsets[${s}]`,
          offset,
          `at most ${most}, for the rows to fit into the target`,
        );
      }
    });
    this.#checkSupport("copyRows", target.dtype);
    this.runCopyRows({ target, source, ...append });
  }

  /**
   * Takes new keys into running block means, in place. The key at position `t` of its sequence, the `c`-th of its block
   * (`c = t mod B + 1`), gives `centroid_j ← centroid_j + (k_t − centroid_j) / c`, `j = floor(t/B)`, in order of `t`. So
   * each mean is that of the block's keys so far, whatever the tensor held before the block's first key.
   * @param centroids float32 `[blocks, Hkv, d]`: changed
   * @param k new keys, `[T, Hkv, d]`, f32, f16 or bf16
   * @param options.offsets the position of each sequence's first new key
   * @throws ArgumentError when a key's block has no room
   */
  updateCentroids(centroids: Tensor, k: Tensor, options: UpdateCentroidsOptions): void {
    checkTensor(this, "centroids", centroids, ["f32"], "[blocks, Hkv, d]");
    checkTensor(this, "k", k, FLOAT_DTYPES, "[T, Hkv, d]");
    const [blocks, kvHeads, headDim] = centroids.shape as [number, number, number];
    checkExtents("k", k, [k.shape[0], kvHeads, headDim], "[T, Hkv, d]");
    const append = checkAppend(options, k.shape[0]);
    checkPositiveInteger("blockSize", options.blockSize);
    const keys = sequenceLengths(append.cuSeqlens).map((length, s) =>
      length === 0 ? 0 : append.offsets[s] + length,
    );
    const cuCentroids = checkCentroidRooms(options.cuCentroids, blocks, keys, options.blockSize);
    this.#checkSupport("updateCentroids", k.dtype);
    this.runUpdateCentroids({ centroids, k, blockSize: options.blockSize, cuCentroids, ...append });
  }

  /**
   * Causal routing by centroids that are already there: `Backend.route`, without a look at the keys. Of the centroids of a
   * query's own block and later ones nothing is read.
   * @param q `[T, H, d]`, f32, f16 or bf16
   * @param centroids float32 `[blocks, Hkv, d]`; `Hkv` divides `H`
   */
  routeCentroids(q: Tensor, centroids: Tensor, options: RouteCentroidsOptions): Routing {
    checkOptions(options);
    checkTensor(this, "q", q, FLOAT_DTYPES, "[T, H, d]");
    checkTensor(this, "centroids", centroids, ["f32"], "[blocks, Hkv, d]");
    const [tokens, heads, headDim] = q.shape as [number, number, number];
    const [blocks, kvHeads] = centroids.shape as [number, number];
    if (heads < 1 || headDim < 1) throw new ShapeError("q", q.shape, "[T, H, d] with H ≥ 1 and d ≥ 1");
    checkExtents("centroids", centroids, [blocks, kvHeads, headDim], "[blocks, Hkv, d]");
    if (kvHeads < 1 || heads % kvHeads !== 0) {
      throw new ShapeError(
        "centroids",
        centroids.shape,
        `[blocks, Hkv, d] with Hkv a divisor of H = ${heads}`,
      );
    }
    const { blockSize, topK } = options;
    checkPositiveInteger("blockSize", blockSize);
    checkPositiveInteger("topK", topK);
    const packing = checkPacking(options, tokens, lastOf(options.cuSeqlensK) ?? tokens);
    const keys = sequenceLengths(packing.cuSeqlensK);
    const queries = sequenceLengths(packing.cuSeqlens);
    const cuCentroids = checkCentroidRooms(
      options.cuCentroids ?? cuBlocks(packing.cuSeqlensK, blockSize),
      blocks,
      keys.map((length, s) => (queries[s] === 0 ? 0 : length)),
      blockSize,
    );
    const slots = Math.min(topK, Math.max(0, ...keys.map((length) => blockCount(length, blockSize))));
    this.#checkSupport("routeCentroids", q.dtype);
    const { indices } = this.produce(
      () => ({ indices: this.empty([tokens, heads, slots], "i32") }),
      (outputs) =>
        this.runRouteCentroids(
          { q, centroids, blockSize, topK, slots, cuCentroids, ...packing },
          outputs.indices,
        ),
    );
    return new Routing(indices, { ...packing, blockSize, topK, causal: true });
  }

  /** Computes {@link copyRows} in place. */
  protected runCopyRows(problem: CopyRowsProblem): void {
    throw new UnsupportedError("copyRows", problem.target.dtype, this.name);
  }
  /** Computes {@link updateCentroids} in place. */
  protected runUpdateCentroids(problem: UpdateCentroidsProblem): void {
    throw new UnsupportedError("updateCentroids", problem.k.dtype, this.name);
  }
  /** Computes the indices of {@link routeCentroids} into the output. */
  protected runRouteCentroids(problem: RouteCentroidsProblem, _indices: Tensor<"i32">): void {
    throw new UnsupportedError("routeCentroids", problem.q.dtype, this.name);
  }
}

/** The last entry of cumulative lengths that are not checked yet. */
const lastOf = (cuSeqlens: CuSeqlensInput | undefined): number | undefined =>
  Array.isArray(cuSeqlens) || cuSeqlens instanceof Int32Array ? cuSeqlens.at(-1) : undefined;

/** Checks the sequences of new tokens and their offsets. */
function checkAppend(
  options: AppendOptions,
  tokens: number,
): { cuSeqlens: CuSeqlens; offsets: readonly number[] } {
  checkOptions(options);
  const cuSeqlens = checkCuSeqlens("cuSeqlens", options.cuSeqlens, tokens);
  const { offsets } = options;
  if (!Array.isArray(offsets) || offsets.length !== cuSeqlens.length - 1) {
    throw new ArgumentError("offsets", offsets, `${cuSeqlens.length - 1} integers, one a sequence`);
  }
  offsets.forEach((offset, s) => {
    if (!Number.isInteger(offset) || offset < 0) {
      throw new ArgumentError(`offsets[${s}]`, offset, "a non-negative integer");
    }
  });
  return { cuSeqlens, offsets: [...offsets] };
}

/** Checks that each sequence has centroids for the blocks of its keys. */
function checkCentroidRooms(
  cuCentroids: CuSeqlensInput,
  blocks: number,
  keys: readonly number[],
  blockSize: number,
): CuSeqlens {
  const rooms = checkCuSeqlens("cuCentroids", cuCentroids, blocks);
  if (rooms.length !== keys.length + 1) {
    throw new ArgumentError(
      "cuCentroids",
      cuCentroids,
      `${keys.length + 1} entries, for ${keys.length} sequences`,
    );
  }
  keys.forEach((length, s) => {
    const needed = blockCount(length, blockSize);
    if (rooms[s + 1] - rooms[s] < needed) {
      throw new ArgumentError(
        `cuCentroids[${s + 1}]`,
        rooms[s + 1],
        `at least ${rooms[s] + needed}, for ${length} keys`,
      );
    }
  });
  return rooms;
}

import type { Backend } from "./backend.js";
import { type DType, sizeOf, type TypedArrays } from "./dtype.js";
import { ArgumentError, ShapeError } from "./errors.js";

/** A piece of a backend's memory. Backends extend it with what they need to address the piece. */
export interface Storage {
  /** Size in bytes. */
  readonly byteLength: number;
  /** Gives the memory back. Called once. */
  free(): void;
}

/** Counts the tensors that share one storage and frees it with the last. Backends make them, nobody else. */
export class StorageOwner {
  /** Tensors that share the storage. */
  references = 0;
  constructor(
    readonly storage: Storage,
    private readonly onFree: (storage: Storage) => void,
  ) {}

  /** One tensor fewer. */
  release(): void {
    this.references -= 1;
    if (this.references > 0) return;
    this.storage.free();
    this.onFree(this.storage);
  }
}

/**
 * An n-dimensional array in a backend's memory: contiguous, row-major, immutable from outside.
 *
 * Made by `backend.tensor(...)` and by operations. Its memory is explicit: `dispose()` it, declare it with `using`, or
 * make it in a `backend.scope`. A tensor that is garbage-collected undisposed gives its memory back too, later.
 */
export class Tensor<D extends DType = DType> {
  /** The backend that holds it; operations take tensors of their own backend only. */
  readonly backend: Backend;
  /** Extents, outermost first. */
  readonly shape: readonly number[];
  /** Element type. */
  readonly dtype: D;
  /** Number of elements. */
  readonly size: number;
  /** @internal Marks tensors of any copy of this package. */
  readonly kind = "@moba-js/tensor/Tensor";
  /** @internal */
  readonly owner: StorageOwner;
  #disposed = false;

  /** @internal Backends make tensors; see `Backend.tensor`. */
  constructor(backend: Backend, shape: readonly number[], dtype: D, owner: StorageOwner) {
    this.backend = backend;
    this.shape = Object.isFrozen(shape) ? shape : Object.freeze([...shape]);
    this.dtype = dtype;
    this.size = sizeOf(shape);
    this.owner = owner;
    owner.references += 1;
  }

  /** Whether `dispose` was called. */
  get disposed(): boolean {
    return this.#disposed;
  }

  /**
   * The backend's memory behind this tensor, for backends.
   * @throws ArgumentError when disposed.
   */
  get storage(): Storage {
    this.#checkAlive();
    return this.owner.storage;
  }

  /**
   * The elements as stored, after all work enqueued so far: float32 values, integers, or the 16 bits of each `f16`/`bf16`.
   * @throws ArgumentError when disposed; DeviceError when the device failed. Both by rejection.
   */
  async data(): Promise<TypedArrays[D]> {
    this.#checkAlive();
    return this.backend.read(this);
  }

  /**
   * The elements' values, whatever the dtype (exact), after all work enqueued so far.
   * @throws ArgumentError when disposed; DeviceError when the device failed.
   */
  async values(): Promise<Float64Array> {
    this.#checkAlive();
    return this.backend.readValues(this);
  }

  /**
   * A tensor of another shape over the same memory (no copy). Both must be disposed.
   * @throws ShapeError when the number of elements differs; ArgumentError when disposed.
   */
  reshape(shape: readonly number[]): Tensor<D> {
    this.#checkAlive();
    if (sizeOf(shape) !== this.size) throw new ShapeError("shape", shape, `of ${this.size} elements`);
    return this.backend.share(this, shape);
  }

  /** Gives the memory back, once no tensor shares it. Disposing twice is allowed. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.backend.released(this);
  }

  /** `using t = …` disposes at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  #checkAlive(): void {
    if (this.#disposed) throw new ArgumentError("tensor", this.shape, "a tensor that is not disposed");
  }
}

/** Whether a value is a {@link Tensor}, of this copy of the package or another. */
export const isTensor = (value: unknown): value is Tensor =>
  (value as Partial<Tensor> | null | undefined)?.kind === "@moba-js/tensor/Tensor";

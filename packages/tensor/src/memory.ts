import type { Backend } from "./backend.js";
import {
  bytesPerElement,
  checkDType,
  checkShape,
  type DType,
  decode,
  encode,
  sizeOf,
  storageArray,
  type TypedArray,
  type TypedArrays,
} from "./dtype.js";
import { ArgumentError, DeviceError, ShapeError } from "./errors.js";
import { Routing } from "./routing.js";
import { isTensor, type Storage, StorageOwner, Tensor } from "./tensor.js";

/** What a backend's memory holds. */
export interface MemoryReport {
  /** Tensors made and not yet disposed. */
  tensors: number;
  /** Bytes of their storage. */
  bytes: number;
  /** The most bytes held at once so far. */
  peakBytes: number;
}

/** Work that a backend has captured, to be run again and again at once. */
export interface CapturedWork {
  /** Enqueues the captured operations, on the same memory. @throws DeviceError when disposed, or when the device is lost. */
  replay(): void;
  /** Gives the memory back that was kept for the work. Disposing twice is allowed. */
  dispose(): void;
}

/** Aids for finding mistakes; all off by default, since each costs time. */
export interface DebugSettings {
  /** Fill every output with NaN (floats) or −7 (integers) before the kernel runs, so that a gap shows. */
  poisonOutputs: boolean;
  /** Remember where each tensor was made, for the leak check's report. */
  traceTensors: boolean;
}

/** A live tensor, as the leak check sees it. */
export interface LiveTensor {
  /** Shape, dtype and, with `debug.traceTensors`, the stack where it was made. */
  readonly description: string;
}

/** What is noted of a live tensor, in words only when asked: operations make many. It must not keep the tensor alive. */
class LiveRecord implements LiveTensor {
  readonly owner: StorageOwner;
  readonly #dtype: DType;
  readonly #shape: readonly number[];

  constructor(
    { owner, dtype, shape }: Tensor,
    readonly where: string,
  ) {
    this.owner = owner;
    this.#dtype = dtype;
    this.#shape = shape;
  }

  get description(): string {
    return `${this.#dtype} [${this.#shape.join(", ")}]${this.where}`;
  }
}

/**
 * The half of a {@link Backend} that holds tensors: making, reading, sharing and freeing them, scopes, and the books that
 * the leak check reads.
 */
export abstract class DeviceMemory {
  /** A short name: `"cpu"`, `"webgpu"`, `"cuda"`. */
  abstract readonly name: string;
  /** The device in words, for reports. */
  abstract readonly device: string;
  /** Aids for finding mistakes. */
  readonly debug: DebugSettings = { poisonOutputs: false, traceTensors: false };

  #closed = false;
  #bytes = 0;
  #peakBytes = 0;
  /** Scopes under way, the innermost last, each with its tensors. */
  readonly #scopes: Set<Tensor>[] = [];
  /** What is noted of the tensors that no scope will dispose; of the others it is noted when somebody asks. */
  readonly #unscoped = new Set<LiveRecord>();
  readonly #records = new WeakMap<Tensor, LiveRecord>();
  /** The safety net: an unscoped tensor collected undisposed releases its storage. */
  readonly #collected = new FinalizationRegistry<LiveRecord>((record) => {
    this.#unscoped.delete(record);
    record.owner.release();
  });
  readonly #onFree = ({ byteLength }: Storage): void => {
    this.#bytes -= byteLength;
  };

  /** Memory for `byteLength` bytes (possibly 0). @throws DeviceError when there is none. */
  protected abstract allocate(byteLength: number, dtype: DType): Storage;
  /** Enqueues a copy of host data of the storage's size to the device. The data is not kept. */
  protected abstract upload(storage: Storage, data: TypedArray): void;
  /** The contents of a storage of this dtype, after all work enqueued so far. A fresh array. */
  protected abstract download(storage: Storage, dtype: DType): Promise<TypedArray>;
  /** The values of a storage of this dtype, for backends that hold them more exactly than the dtype says. */
  protected async downloadValues(storage: Storage, dtype: DType): Promise<Float64Array> {
    return decode(await this.download(storage, dtype), dtype);
  }
  /** Gives the device back. Called once. */
  protected abstract close(): void;

  /**
   * Milliseconds of device time that the operations enqueued by `run` take, uploads included. Waits for them.
   */
  abstract time(run: () => void): Promise<number>;

  /**
   * Captures the operations of `run` instead of running them; absent where a backend cannot. Tensors made by `run` have their values
   * after a replay; those that it takes are read anew by each one (see {@link write}).
   * @throws DeviceError when `run` makes tensors of given values, reads tensors, or waits.
   */
  capture?(run: () => void): CapturedWork;

  /**
   * A tensor of the given values, rounded to the dtype (nearest, ties to even). A `Uint16Array` given for `f16` or `bf16`
   * is taken as raw bits.
   * @param shape its product must be the length of `data`.
   * @throws ArgumentError naming the element, when an integer dtype cannot hold it.
   */
  tensor<D extends DType = "f32">(data: ArrayLike<number>, shape: readonly number[], dtype?: D): Tensor<D> {
    const type = (dtype ?? "f32") as D;
    checkDType("dtype", type);
    checkShape("shape", shape);
    return this.#filled(shape, type, storedValues(data, shape, type));
  }

  /**
   * Enqueues writing values over those of a tensor, in place: for tensors that captured work reads.
   * @param data as `tensor` takes it
   */
  write(tensor: Tensor, data: ArrayLike<number>): void {
    this.#checkOpen();
    if (!isTensor(tensor) || (tensor.backend as unknown) !== this) {
      throw new ArgumentError("tensor", tensor, "a tensor of this backend");
    }
    this.upload(tensor.storage, storedValues(data, tensor.shape, tensor.dtype));
  }

  /** A tensor of zeros. */
  zeros<D extends DType = "f32">(shape: readonly number[], dtype?: D): Tensor<D> {
    const type = (dtype ?? "f32") as D;
    checkDType("dtype", type);
    checkShape("shape", shape);
    return this.#filled(shape, type, storageArray(type, sizeOf(shape)));
  }

  #filled<D extends DType>(shape: readonly number[], dtype: D, stored: TypedArrays[D]): Tensor<D> {
    return this.scope(() => {
      const tensor = this.empty(shape, dtype);
      this.upload(tensor.storage, stored);
      return tensor;
    });
  }

  /** What this backend's memory holds now. */
  memory(): MemoryReport {
    const tensors = this.#scopes.reduce((sum, { size }) => sum + size, this.#unscoped.size);
    return { tensors, bytes: this.#bytes, peakBytes: this.#peakBytes };
  }

  /** The tensors made and not yet disposed. */
  liveTensors(): LiveTensor[] {
    const scoped = this.#scopes.flatMap((scope) => [...scope].map((tensor) => this.#recordOf(tensor)));
    return [...this.#unscoped, ...scoped];
  }

  /**
   * Runs `body` and disposes every tensor it made, except those in its result (a tensor, a routing, or arrays and
   * plain objects of them). Scopes nest. When `body` throws, everything it made is disposed.
   * @throws ArgumentError when `body` returns a promise: what runs later would be outside the scope.
   */
  scope<T>(body: () => T): T {
    const made = this.#open();
    try {
      const result = body();
      if (result instanceof Promise) {
        result.catch(() => undefined); // it fails on disposed tensors, which says nothing new
        throw new ArgumentError("body", result, "a function that returns no promise");
      }
      forEachTensor(result, (kept) => this.#handOut(kept));
      return result;
    } finally {
      this.#close(made);
    }
  }

  #open(): Set<Tensor> {
    const made = new Set<Tensor>();
    this.#scopes.push(made);
    return made;
  }

  /** Hands a tensor of the innermost scope, if it is one, to the scope around it. */
  #handOut(tensor: Tensor): void {
    const innermost = this.#scopes.length - 1;
    if (this.#scopes[innermost].delete(tensor)) this.#keep(tensor, this.#scopes[innermost - 1]);
  }

  /** Ends the innermost scope. */
  #close(made: Set<Tensor>): void {
    try {
      for (const tensor of made) tensor.dispose();
    } finally {
      this.#scopes.pop();
    }
  }

  /** Gives the device back. Tensors of a closed backend can only be disposed. */
  dispose(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.close();
  }

  /** `using backend = …` closes at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** @internal See `Tensor.data`. */
  async read<D extends DType>(tensor: Tensor<D>): Promise<TypedArrays[D]> {
    this.#checkOpen();
    return (await this.download(tensor.storage, tensor.dtype)) as TypedArrays[D];
  }

  /** @internal See `Tensor.values`. */
  async readValues(tensor: Tensor): Promise<Float64Array> {
    this.#checkOpen();
    return this.downloadValues(tensor.storage, tensor.dtype);
  }

  /** @internal See `Tensor.reshape`. */
  share<D extends DType>(tensor: Tensor<D>, shape: readonly number[]): Tensor<D> {
    checkShape("shape", shape);
    return this.#track(shape, tensor.dtype, tensor.owner);
  }

  /** @internal See `Tensor.dispose`. */
  released(tensor: Tensor): void {
    if (!this.#leaveScope(tensor)) {
      this.#unscoped.delete(this.#recordOf(tensor));
      this.#collected.unregister(tensor);
    }
    tensor.owner.release();
  }

  /** Takes a tensor out of its scope, if it is in one: mostly the innermost or the next. */
  #leaveScope(tensor: Tensor): boolean {
    for (let i = this.#scopes.length - 1; i >= 0; i--) if (this.#scopes[i].delete(tensor)) return true;
    return false;
  }

  /** An uninitialized tensor, for backends and their compositions. */
  protected empty<D extends DType>(shape: readonly number[], dtype: D): Tensor<D> {
    this.#checkOpen();
    const storage = this.allocate(sizeOf(shape) * bytesPerElement(dtype), dtype);
    this.#bytes += storage.byteLength;
    this.#peakBytes = Math.max(this.#peakBytes, this.#bytes);
    return this.#track(shape, dtype, new StorageOwner(storage, this.#onFree));
  }

  #track<D extends DType>(shape: readonly number[], dtype: D, owner: StorageOwner): Tensor<D> {
    // Every DeviceMemory is a Backend: only Backend extends it.
    const tensor = new Tensor(this as unknown as Backend, shape, dtype, owner);
    if (this.debug.traceTensors) this.#recordOf(tensor, `\n${new Error("made here").stack}`);
    this.#keep(tensor, this.#scopes.at(-1));
    return tensor;
  }

  /** Has a scope dispose a tensor; without one, its owner or the garbage collector will. */
  #keep(tensor: Tensor, scope: Set<Tensor> | undefined): void {
    if (scope) {
      scope.add(tensor);
      return;
    }
    const record = this.#recordOf(tensor);
    this.#unscoped.add(record);
    this.#collected.register(tensor, record, tensor);
  }

  /** What is noted of a tensor, from the first time that it is asked for. */
  #recordOf(tensor: Tensor, where = ""): LiveRecord {
    const known = this.#records.get(tensor);
    if (known) return known;
    const record = new LiveRecord(tensor, where);
    this.#records.set(tensor, record);
    return record;
  }

  #checkOpen(): void {
    if (this.#closed) throw new DeviceError(this.name, "this backend is closed");
  }

  /** Makes the outputs, runs the kernel, and disposes the outputs when the kernel throws. */
  protected produce<R extends Record<string, Tensor>>(make: () => R, run: (outputs: R) => void): R {
    const made = this.#open();
    try {
      const outputs = make();
      if (this.debug.poisonOutputs) for (const name in outputs) this.#poison(outputs[name]);
      run(outputs);
      for (const name in outputs) this.#handOut(outputs[name]);
      return outputs;
    } finally {
      this.#close(made);
    }
  }

  #poison(output: Tensor): void {
    const poison = storageArray(output.dtype, output.size);
    // 0x7fff is a NaN in f16 and in bf16.
    poison.fill(output.dtype === "f32" ? Number.NaN : bytesPerElement(output.dtype) === 2 ? 0x7fff : -7);
    this.upload(output.storage, poison);
  }
}

const STORAGE_ARRAYS = {
  f32: Float32Array,
  f16: Uint16Array,
  bf16: Uint16Array,
  i32: Int32Array,
  u32: Uint32Array,
} as const;

/** Values as a dtype stores them, checked. */
function storedValues<D extends DType>(
  data: ArrayLike<number>,
  shape: readonly number[],
  dtype: D,
): TypedArrays[D] {
  if (typeof data !== "object" || data === null || !Number.isInteger(data.length)) {
    throw new ArgumentError("data", data, "an array of numbers");
  }
  if (data.length !== sizeOf(shape))
    throw new ShapeError("shape", shape, `of ${data.length} elements, as data has`);
  return isStored(data, dtype) ? data : encode(data, dtype);
}

/**
 * Whether an array is one that stores the dtype, so that there is nothing to round or refuse; shared memory is copied, since it may change.
 */
const isStored = <D extends DType>(data: object, dtype: D): data is TypedArrays[D] =>
  data instanceof STORAGE_ARRAYS[dtype] && data.buffer instanceof ArrayBuffer;

/** Calls `visit` with every tensor in a value made of tensors, routings, arrays and plain objects. */
function forEachTensor(value: unknown, visit: (tensor: Tensor) => void): void {
  if (typeof value !== "object" || value === null) return;
  if (isTensor(value)) visit(value);
  else if (value instanceof Routing) visit(value.indices);
  else if (Array.isArray(value)) for (const item of value) forEachTensor(item, visit);
  else if (Object.getPrototypeOf(value) === Object.prototype) {
    for (const item of Object.values(value)) forEachTensor(item, visit);
  }
}

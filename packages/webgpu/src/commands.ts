/// <reference types="@webgpu/types" />
import { bytesPerElement, DeviceError, type DType, type Tensor } from "@moba-js/tensor";
import { countedBefore, type Kernel, type Specialization } from "./kernel.js";
import { BufferPool, bufferSize, type PooledBuffer, USAGE } from "./memory.js";
import { PARAM_BYTES, Pipelines } from "./pipelines.js";

/** Every JavaScript host has it, but not the language's own library. */
declare function setTimeout(run: (value: unknown) => void, milliseconds: number): unknown;

/** A piece of memory that a kernel is given: a buffer, or some of its bytes. */
export interface Piece {
  readonly storage: PooledBuffer;
  readonly dtype: DType;
  /** Where it begins, in bytes: a multiple of 256. Default: the buffer's beginning. */
  readonly offset?: number;
  /** Default: to the buffer's end. */
  readonly byteLength?: number;
  /** The element that lies at its beginning, as kernels count: a multiple of 128. Default 0. */
  readonly origin?: number;
}

/** Small read-only data that lie in the arena of the next submission. */
interface Table {
  readonly offset: number;
  readonly byteLength: number;
}

/** What a kernel can be given: a tensor, workspace, or a small table of the host's. */
export type Argument = Tensor | Piece | Uint32Array;

/** One launch of a kernel. */
export interface Launch<B extends string, P extends string> {
  readonly buffers: Readonly<Record<B, Argument>>;
  readonly params: Readonly<Record<P, number>>;
  readonly constants?: Readonly<Record<string, number | boolean>>;
  /** Rows are a multiple of four elements long. Default false. */
  readonly vector?: boolean;
  /** Workgroups; none launches nothing. */
  readonly groups: number;
}

/** Bytes of small data that a submission carries at most. */
const ARENA_BYTES = 1 << 20;
/** Uploads up to this size travel in the arena, in order with the launches; larger ones end the submission. */
const SMALL_UPLOAD = 1 << 15;
/** Launches that a submission holds at most: enough to share its cost, few enough for the device to begin while the host goes on. */
const MOST_LAUNCHES = 128;

const align = (bytes: number, to: number): number => Math.ceil(bytes / to) * to;

const bytesOf = (data: ArrayBufferView): Uint8Array =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** The pooled buffer of a tensor or of workspace. */
const bufferOf = (piece: Tensor | Piece): PooledBuffer => piece.storage as PooledBuffer;

/** Rows of a tensor or of workspace, as a piece of their own; `first` is a multiple of 128 (see {@link rowRanges}). */
export function rowsOf(whole: Tensor | Piece, rowElements: number, first: number, count: number): Piece {
  const rowBytes = rowElements * bytesPerElement(whole.dtype);
  const storage = bufferOf(whole);
  return { storage, dtype: whole.dtype, offset: first * rowBytes, byteLength: count * rowBytes };
}

/**
 * Elements `first … end − 1` of a tensor or of workspace, and some before them, for a kernel that counts from the beginning of the
 * whole; at most {@link WINDOW_BYTES} more than they are.
 */
export function windowOf(whole: Tensor | Piece, first: number, end: number): Piece {
  const { storage, dtype, offset = 0, byteLength, origin = 0 } = whole as Piece;
  const bytes = bytesPerElement(dtype);
  const begin = Math.floor(((first - origin) * bytes) / OFFSET_ALIGNMENT) * OFFSET_ALIGNMENT;
  const last = Math.min(align((end - origin) * bytes, 16), byteLength ?? storage.byteLength - offset);
  return {
    ...{ storage, dtype, offset: offset + begin, byteLength: Math.max(0, last - begin) },
    origin: origin + begin / bytes,
  };
}

/** What the bytes of a window's end and beginning are multiples of. */
const OFFSET_ALIGNMENT = 256;
export const WINDOW_BYTES = OFFSET_ALIGNMENT + 16;

/**
 * Cuts rows into ranges that can be bound, for operations whose rows do not depend on each other: one range, if all can.
 * @param rowBytes bytes of the longest row
 * @param limit bytes that can be bound
 */
export function rowRanges(rows: number, rowBytes: number, limit: number): { first: number; count: number }[] {
  if (rows * rowBytes <= limit) return rows === 0 ? [] : [{ first: 0, count: rows }];
  const step = Math.floor(limit / rowBytes / ROW_ALIGNMENT) * ROW_ALIGNMENT;
  if (step === 0) {
    throw new DeviceError(
      "webgpu",
      `${ROW_ALIGNMENT} rows of ${rowBytes} bytes are more than can be bound (${limit})`,
    );
  }
  return Array.from({ length: Math.ceil(rows / step) }, (_, i) => ({
    first: i * step,
    count: Math.min(step, rows - i * step),
  }));
}

/** So many rows of any dtype and length end on a multiple of 256 bytes, where a binding may begin. */
const ROW_ALIGNMENT = 128;

/**
 * The queue of one backend: it collects launches, copies and small uploads in one command encoder, and submits them together when
 * there are many, when something large is uploaded, or when a result is read.
 */
export class Commands {
  readonly pool: BufferPool;
  readonly pipelines: Pipelines;
  readonly #arena: GPUBuffer;
  readonly #arenaData = new Uint8Array(ARENA_BYTES);
  readonly #paramsGroup: GPUBindGroup;
  #arenaUsed = 0;
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #launches = 0;
  #submission = 0;
  #doomed: GPUBuffer[] = [];
  #failure: DeviceError | undefined;
  #lost: DeviceError | undefined;
  /** Settles when the errors of everything submitted so far are known. */
  #checked: Promise<unknown> = Promise.resolve();
  readonly #readers = new Map<number, GPUBuffer[]>();

  constructor(
    readonly device: GPUDevice,
    private readonly options: { readonly maxKeptBytes: number; readonly f16: boolean },
  ) {
    this.pipelines = new Pipelines(device);
    this.pool = new BufferPool(
      (size) => this.#makeBuffer(size, USAGE.storage | USAGE.copySource | USAGE.copyTarget),
      (buffer) => this.#doomed.push(buffer),
      options.maxKeptBytes,
      device.limits.maxBufferSize,
    );
    this.#arena = device.createBuffer({
      size: ARENA_BYTES,
      usage: USAGE.uniform | USAGE.storage | USAGE.copySource | USAGE.copyTarget,
    });
    this.#paramsGroup = device.createBindGroup({
      layout: this.pipelines.paramsLayout,
      entries: [{ binding: 0, resource: { buffer: this.#arena, size: PARAM_BYTES } }],
    });
    device.lost.then(({ message, reason }) => {
      this.#lost ??= new DeviceError(
        "webgpu",
        `the device is lost (${message || reason || "no reason given"})`,
      );
    });
  }

  /** Bytes of a buffer that a kernel can be given at once. */
  get bindingLimit(): number {
    return this.device.limits.maxStorageBufferBindingSize;
  }

  /** @throws DeviceError when the device is lost. */
  checkAlive(): void {
    if (this.#lost) throw this.#lost;
  }

  /** Workspace for kernels that are launched now; free it after the last launch that uses it. */
  workspace(elements: number, dtype: DType = "f32"): Piece & { free(): void } {
    const storage = this.pool.take(elements * bytesPerElement(dtype));
    return { storage, dtype, free: () => storage.free() };
  }

  /** Launches a kernel. */
  launch<B extends string, P extends string>(kernel: Kernel<B, P>, launch: Launch<B, P>): void {
    this.checkAlive();
    const { buffers, constants = {}, vector = false, groups } = launch;
    if (groups === 0) return;
    const names = Object.keys(kernel.bindings) as B[];
    const dtypes: Record<string, DType> = {};
    for (const name of names) {
      const { element } = kernel.bindings[name];
      const argument = buffers[name];
      const isFloat = element === "quads" || element === "rows" || element === "elements";
      if (isFloat) dtypes[name] = (argument as Tensor | Piece).dtype;
    }
    const f16 = this.options.f16 && Object.values(dtypes).includes("f16");
    const spec: Specialization = { constants, dtypes, vector, f16 };
    const compiled = this.pipelines.get(kernel as Kernel, spec);
    if (!compiled) return;

    const copies: (Piece & { free(): void })[] = [];
    const given: Record<string, Argument> = { ...buffers };
    for (const name of names) {
      const table = given[name];
      if (!(table instanceof Uint32Array) || table.byteLength <= SMALL_UPLOAD) continue;
      const piece = this.#largeTable(table);
      copies.push(piece);
      given[name] = piece;
    }
    const tables = names.map((name) => given[name]).filter((argument) => argument instanceof Uint32Array);
    this.#makeRoom(tables.reduce((sum, table) => sum + align(table.byteLength, 256), 0));
    const written = new Set(
      names
        .filter((name) => kernel.bindings[name].access === "write")
        .map((name) => this.#bufferOf(given[name])),
    );
    const entries = names.map((name, binding): GPUBindGroupEntry => {
      const argument = given[name];
      if (argument instanceof Uint32Array) {
        const { offset, byteLength } = this.#place(argument);
        return {
          binding,
          resource: { buffer: this.#arena, offset, size: Math.max(16, align(byteLength, 16)) },
        };
      }
      const { offset = 0, byteLength } = argument as Piece;
      let storage = bufferOf(argument);
      if (kernel.bindings[name].access === "read" && written.has(storage)) {
        // A buffer cannot be read and written in one launch under two names.
        const copy = this.#copyOf(argument);
        copies.push(copy);
        storage = copy.storage;
      }
      storage.lastUse = this.#submission;
      const size = Math.max(16, align(byteLength ?? storage.byteLength - offset, 16));
      if (size > this.bindingLimit) {
        const limit = this.bindingLimit;
        throw new DeviceError(
          "webgpu",
          `${kernel.name} cannot bind ${size} bytes: this device allows ${limit}`,
        );
      }
      return { binding, resource: { buffer: storage.buffer, offset, size } };
    });
    const gridWidth = Math.min(groups, this.device.limits.maxComputeWorkgroupsPerDimension);
    const from = names.map((name) => {
      const argument = given[name];
      if (argument instanceof Uint32Array) return 0;
      return countedBefore(kernel.bindings[name].element, argument.dtype, (argument as Piece).origin ?? 0);
    });
    const params = this.#placeParams(kernel, [groups, gridWidth, ...from], launch.params);
    this.#pass ??= this.#openEncoder().beginComputePass();
    this.#pass.setPipeline(compiled.pipeline);
    this.#pass.setBindGroup(0, this.device.createBindGroup({ layout: compiled.layout, entries }));
    this.#pass.setBindGroup(1, this.#paramsGroup, [params]);
    this.#pass.dispatchWorkgroups(gridWidth, Math.ceil(groups / gridWidth));
    for (const copy of copies) copy.free();
    this.#launches += 1;
    if (this.#launches >= MOST_LAUNCHES) this.submit();
  }

  /** Fills a piece with zero bits. */
  clear(piece: Tensor | Piece): void {
    this.checkAlive();
    if (this.pipelines.collecting) return;
    const storage = bufferOf(piece);
    const { offset = 0, byteLength = storage.byteLength - offset } = piece as Piece;
    this.#copyEncoder().clearBuffer(storage.buffer, offset, align(byteLength, 4));
    storage.lastUse = this.#submission;
  }

  /** Copies the host's data into a buffer, after the launches so far and before those to come. */
  upload(storage: PooledBuffer, data: ArrayBufferView): void {
    this.checkAlive();
    if (data.byteLength === 0 || this.pipelines.collecting) return;
    if (storage.lastUse === this.#submission && this.#encoder) {
      if (data.byteLength <= SMALL_UPLOAD) {
        this.#makeRoom(align(data.byteLength, 256));
        const { offset } = this.#place(data);
        this.#copyEncoder().copyBufferToBuffer(
          this.#arena,
          offset,
          storage.buffer,
          0,
          align(data.byteLength, 4),
        );
        storage.lastUse = this.#submission;
        return;
      }
      this.submit();
    }
    const bytes = bytesOf(data);
    const whole = bytes.byteLength & ~3;
    this.device.queue.writeBuffer(storage.buffer, 0, bytes as Uint8Array<ArrayBuffer>, 0, whole);
    if (whole === bytes.byteLength) return;
    const rest = new Uint8Array(4);
    rest.set(bytes.subarray(whole));
    this.device.queue.writeBuffer(storage.buffer, whole, rest);
  }

  /** The bytes of a buffer, after everything so far. @throws DeviceError when the device failed. */
  async download(storage: PooledBuffer): Promise<ArrayBuffer> {
    this.checkAlive();
    const bytes = align(storage.byteLength, 4);
    if (bytes === 0) return new ArrayBuffer(0);
    const size = bufferSize(bytes);
    const reader = this.#readers.get(size)?.pop() ?? this.#makeBuffer(size, USAGE.mapRead | USAGE.copyTarget);
    this.#copyEncoder().copyBufferToBuffer(storage.buffer, 0, reader, 0, bytes);
    this.submit();
    const checked = this.#checked;
    let result: ArrayBuffer;
    try {
      await reader.mapAsync(1, 0, bytes);
      await checked;
      result = reader.getMappedRange(0, bytes).slice(0, storage.byteLength);
      reader.unmap(); // which wgpu refuses on a lost device
    } catch (error) {
      reader.destroy();
      return this.#explain(error);
    }
    const kept = this.#readers.get(size) ?? [];
    if (kept.length < 4 && size <= 1 << 26) this.#readers.set(size, [...kept, reader]);
    else reader.destroy();
    this.#throwFailure();
    return result;
  }

  /** Resolves when everything so far has run. @throws DeviceError when the device failed. */
  async drain(): Promise<void> {
    this.submit();
    const checked = this.#checked;
    try {
      await this.device.queue.onSubmittedWorkDone();
      await checked;
    } catch (error) {
      await this.#explain(error);
    }
    this.checkAlive();
    this.#throwFailure();
  }

  /** Encodes commands outside compute passes: timestamps. */
  encode(commands: (encoder: GPUCommandEncoder) => void): void {
    this.checkAlive();
    commands(this.#copyEncoder());
  }

  /** Hands what was collected to the device. */
  submit(): void {
    if (!this.#encoder) {
      this.#destroyDoomed();
      return;
    }
    this.#pass?.end();
    this.#pass = undefined;
    const { queue } = this.device;
    this.#watch(() => {
      if (this.#arenaUsed > 0)
        queue.writeBuffer(this.#arena, 0, this.#arenaData, 0, align(this.#arenaUsed, 4));
      queue.submit([(this.#encoder as GPUCommandEncoder).finish()]);
    });
    this.#encoder = undefined;
    this.#arenaUsed = 0;
    this.#launches = 0;
    this.#submission += 1;
    this.#destroyDoomed();
  }

  /** Destroys every buffer but those of live tensors, which go when they are freed. */
  close(): void {
    this.#encoder = undefined;
    this.#pass = undefined;
    this.#destroyDoomed();
    this.pool.close();
    this.#arena.destroy();
    for (const readers of this.#readers.values()) for (const reader of readers) reader.destroy();
    this.#lost ??= new DeviceError("webgpu", "this backend is closed");
  }

  #bufferOf(argument: Argument): PooledBuffer | undefined {
    return argument instanceof Uint32Array ? undefined : bufferOf(argument);
  }

  #destroyDoomed(): void {
    for (const buffer of this.#doomed) buffer.destroy();
    this.#doomed = [];
  }

  #openEncoder(): GPUCommandEncoder {
    this.#encoder ??= this.device.createCommandEncoder();
    return this.#encoder;
  }

  /** The encoder, with no pass open. */
  #copyEncoder(): GPUCommandEncoder {
    this.#pass?.end();
    this.#pass = undefined;
    return this.#openEncoder();
  }

  #makeBuffer(size: number, usage: number): GPUBuffer {
    this.checkAlive();
    return this.#watch(() => this.device.createBuffer({ size, usage }));
  }

  /** Runs `body`; its errors, which WebGPU tells later, fail the next read. Those of others on the device do not. */
  #watch<T>(body: () => T): T {
    const { device } = this;
    device.pushErrorScope("validation");
    device.pushErrorScope("out-of-memory");
    device.pushErrorScope("internal");
    let result: T;
    try {
      result = body();
    } finally {
      const scopes = [device.popErrorScope(), device.popErrorScope(), device.popErrorScope()];
      const checked = Promise.all(scopes).then(
        (errors) => {
          const error = errors.find((found) => found !== null);
          if (error) this.#failure ??= new DeviceError("webgpu", error.message);
        },
        () => undefined, // lost, which is told by itself
      );
      this.#checked = Promise.all([this.#checked, checked]);
    }
    return result;
  }

  #throwFailure(): void {
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure) throw failure;
  }

  /** Throws what a failed wait means. */
  async #explain(error: unknown): Promise<never> {
    // A lost device rejects what waits for it before it says that it is lost.
    await Promise.race([this.device.lost, new Promise((resolve) => setTimeout(resolve, 100))]);
    this.checkAlive();
    await this.#checked;
    this.#throwFailure();
    throw new DeviceError("webgpu", error instanceof Error ? error.message : String(error));
  }

  /** Submits first when the arena has no room for so much and a launch's parameters. */
  #makeRoom(bytes: number): void {
    if (this.#arenaUsed + bytes + PARAM_BYTES > ARENA_BYTES) this.submit();
  }

  #place(data: ArrayBufferView): Table {
    const offset = this.#arenaUsed;
    this.#arenaData.set(bytesOf(data), offset);
    this.#arenaUsed = align(offset + data.byteLength, 256);
    return { offset, byteLength: data.byteLength };
  }

  #placeParams(kernel: Kernel, common: readonly number[], values: Readonly<Record<string, number>>): number {
    const offset = this.#arenaUsed;
    const view = new DataView(this.#arenaData.buffer, offset, PARAM_BYTES);
    common.forEach((value, i) => {
      view.setUint32(4 * i, value, true);
    });
    Object.entries(kernel.params).forEach(([name, type], i) => {
      const at = 4 * (common.length + i);
      if (type === "f32") view.setFloat32(at, values[name], true);
      else if (type === "i32") view.setInt32(at, values[name], true);
      else view.setUint32(at, values[name], true);
    });
    this.#arenaUsed = offset + PARAM_BYTES;
    return offset;
  }

  #largeTable(table: Uint32Array): Piece & { free(): void } {
    const piece = this.workspace(table.length, "u32");
    this.upload(piece.storage, table);
    return piece;
  }

  #copyOf(argument: Tensor | Piece): Piece & { free(): void } {
    const source = bufferOf(argument);
    const storage = this.pool.take(source.byteLength);
    const bytes = align(source.byteLength, 4);
    this.#copyEncoder().copyBufferToBuffer(source.buffer, 0, storage.buffer, 0, bytes);
    source.lastUse = this.#submission;
    storage.lastUse = this.#submission;
    return { storage, dtype: argument.dtype, free: () => storage.free() };
  }
}

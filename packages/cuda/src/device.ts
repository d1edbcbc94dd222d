import { existsSync, readFileSync } from "node:fs";
import { ArgumentError, DeviceError } from "@moba-js/tensor";
import { Arguments } from "./arguments.js";
import { Blas, blasLibraries, type ProductShape } from "./blas.js";
import { Constants, LASTING, PASSING } from "./constants.js";
import { Graph } from "./graph.js";
import { type Block, MemoryPool, type PoolReport } from "./memory-pool.js";
import {
  deviceErrors,
  type Handle,
  kernelFile,
  loadAddon,
  type NativeDevice,
  toDeviceError,
} from "./native.js";
import { CudaStorage, pointerOf } from "./storage.js";

export type { ProductShape };
// All that a launch plan needs comes from this file.
export { Arguments, pointerOf };

/** Which kernels run: Hopper's, the portable ones for tensor cores, or the plain ones. */
export type KernelPath = "sm90" | "sm80" | "plain";

const PATHS: readonly KernelPath[] = ["plain", "sm80", "sm90"];

/** Options of a device. */
export interface DeviceOptions {
  /** Its number, as `cudaDevices` lists them. Default 0. */
  device?: number;
  /** The best kernels to use. Default: the best that the device can run. */
  path?: KernelPath;
  /** Use cuBLASLt for matrix products, where it is found. Default: unless `path` is `"plain"`. */
  cublas?: boolean;
  /** The most device memory to hold, memory kept for reuse included. Default: all there is. */
  maxBytes?: number;
  /** The most temporary memory that one operation plans for. Default 896 MiB. */
  maxWorkspaceBytes?: number;
}

/** A kernel, ready to launch. */
export interface Kernel {
  /** Its name, as exported. */
  readonly name: string;
}

/** A kernel, with what only the device knows of it. */
interface LoadedKernel extends Kernel {
  readonly handle: Handle;
  /** Dynamic shared memory that it may be launched with. */
  allowedShared: number;
}

/** Temporary device memory, freed in the order of the stream: dispose it right after the last launch that uses it. */
export interface Scratch {
  /** Its address, aligned to at least 256 bytes; 0 when it has no bytes. */
  readonly pointer: number;
  readonly byteLength: number;
  dispose(): void;
  [Symbol.dispose](): void;
}

/** Memory of a pool as {@link Scratch}. */
class PoolScratch implements Scratch {
  readonly pointer: number;
  #live = true;

  /** @param giveBack what becomes of it when it is disposed */
  constructor(
    readonly block: Block,
    readonly pool: MemoryPool,
    readonly byteLength: number,
    private readonly giveBack: (scratch: PoolScratch) => void,
  ) {
    this.pointer = block.pointer;
  }

  dispose(): void {
    if (!this.#live) return;
    this.#live = false;
    this.giveBack(this);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** A launch and the device time that it took. */
export interface LaunchTime {
  /** The kernel's name, `fill` or `copy`. */
  readonly name: string;
  readonly milliseconds: number;
}

/** A launch between two events. */
interface TimedLaunch {
  readonly name: string;
  readonly start: Handle;
  readonly end: Handle;
}

/** What a capture under way keeps for its graph. */
interface Capture {
  /** Memory for what is made while capturing: reused among the captured work, by no other. */
  readonly pool: MemoryPool;
  /** Memory made before that the captured work uses. */
  readonly held: Set<CudaStorage>;
  /** Written once, before the first replay, so their memory is never reused. */
  readonly constants: Constants;
}

const TENSOR_MAP_TYPES = { f16: 6, bf16: 9, f32: 7, i32: 3 } as const;
const SWIZZLES = { 0: 0, 32: 1, 64: 2, 128: 3 } as const;
/** Every kernel may use so much dynamic shared memory without asking. */
const UNASKED_SHARED = 48 * 1024;
/** What a launch has before its parameters: the grid's three extents, threads, and bytes of shared memory. */
const LAUNCH_WORDS = 5;
const DEFAULT_WORKSPACE = 896 * 2 ** 20;

/**
 * A CUDA device with one stream, on which everything is enqueued but what {@link Device.beside} takes. Nothing waits for it but what
 * returns a promise, and freeing memory for want of it.
 */
export class Device {
  readonly name: string;
  /** 90 for 9.0. */
  readonly computeCapability: number;
  readonly multiprocessors: number;
  readonly l2Bytes: number;
  /** The most shared memory that a block may ask for. */
  readonly sharedBytesPerBlock: number;
  /** The CUDA version of the driver: "12.8". */
  readonly driverVersion: string;
  /** The best kernels allowed. */
  readonly path: KernelPath;
  /** The most temporary memory that one operation should plan for. */
  readonly maxWorkspaceBytes: number;

  /** cuBLASLt's version, where it is used: "12.8.4". */
  readonly blasVersion: string | undefined;

  readonly #native: NativeDevice;
  readonly #blas: Blas | undefined;
  readonly #pool: MemoryPool;
  readonly #modules = new Map<string, Handle>();
  readonly #kernels = new Map<string, LoadedKernel>();
  readonly #constants: Constants;
  /** Where the addon reads a launch from: `LaunchBlock` of `addon/device.h`. */
  readonly #launchBlock: Int32Array;
  #capture: Capture | undefined;
  readonly #hold = (storage: CudaStorage): void => this.#holdFor(this.#capture, storage, undefined);
  /** Memory that was freed by the work of {@link beside} under way. */
  #freedBeside: PoolScratch[] | undefined;
  readonly #giveBack = (scratch: PoolScratch): void => {
    if (this.#freedBeside) this.#freedBeside.push(scratch);
    else scratch.pool.give(scratch.block);
  };
  #launches: TimedLaunch[] | undefined;
  #closed = false;

  /**
   * @throws DeviceError where there is no addon, driver or such device; ArgumentError for options that are none.
   */
  constructor(options: DeviceOptions = {}) {
    const addon = loadAddon();
    const { driverVersion, devices } = deviceErrors(() => addon.devices());
    const ordinal = options.device ?? 0;
    if (!Number.isInteger(ordinal) || ordinal < 0) {
      throw new ArgumentError("device", ordinal, "a device's number, from 0");
    }
    const properties = devices[ordinal];
    if (properties === undefined) {
      throw new DeviceError("cuda", `there is no device ${ordinal}: the driver shows ${devices.length}`);
    }
    this.name = properties.name;
    this.computeCapability = properties.computeCapability;
    this.multiprocessors = properties.multiprocessors;
    this.l2Bytes = properties.l2Bytes;
    this.sharedBytesPerBlock = properties.sharedBytesPerBlock;
    this.driverVersion = `${Math.floor(driverVersion / 1000)}.${Math.floor((driverVersion % 1000) / 10)}`;
    this.path = choosePath(properties.name, properties.computeCapability, options.path);
    this.maxWorkspaceBytes = checkBytes("maxWorkspaceBytes", options.maxWorkspaceBytes, DEFAULT_WORKSPACE);
    const maxBytes = checkBytes("maxBytes", options.maxBytes, Number.POSITIVE_INFINITY);
    this.#native = deviceErrors(() => new addon.Device(ordinal));
    this.#launchBlock = new Int32Array(this.#native.launchMemory());
    const wanted = options.cublas ?? this.path !== "plain";
    this.#blas = wanted ? Blas.open(this.#native, blasLibraries(driverVersion)) : undefined;
    this.blasVersion = this.#blas?.version;
    this.#pool = new MemoryPool(
      {
        allocate: (byteLength) => {
          const pointer = deviceErrors(() => this.#native.allocate(byteLength));
          return pointer === 0 ? undefined : { pointer, byteLength };
        },
        free: (blocks) => {
          if (!this.#closed) deviceErrors(() => this.#native.free(blocks.map(({ pointer }) => pointer)));
        },
      },
      maxBytes,
    );
    this.#constants = new Constants(this.#pool, (pointer, values) => this.upload(pointer, values), PASSING);
  }

  /**
   * A kernel of `dist/kernels/<file>.fatbin`, loaded on first use.
   * @throws DeviceError when the file, or the kernel in it, is not there for this device.
   */
  kernel(file: string, name: string): Kernel {
    const known = this.#kernels.get(name);
    if (known) return known;
    let module = this.#modules.get(file);
    if (module === undefined) {
      const path = kernelFile(file);
      if (!existsSync(path)) {
        throw new DeviceError(
          "cuda",
          `kernel file ${path} is missing; build it with "npm run build" in packages/cuda (needs nvcc)`,
        );
      }
      module = this.loadModule(readFileSync(path));
      this.#modules.set(file, module);
    }
    const kernel = this.kernelOf(module, name);
    this.#kernels.set(name, kernel);
    return kernel;
  }

  /** Loads a module from a fatbin, a cubin or zero-terminated PTX. */
  loadModule(image: Uint8Array): Handle {
    return deviceErrors(() => this.#native.loadModule(image));
  }

  /** A kernel of a loaded module. */
  kernelOf(module: Handle, name: string): Kernel & LoadedKernel {
    return {
      name,
      handle: deviceErrors(() => this.#native.getFunction(module, name)),
      allowedShared: UNASKED_SHARED,
    };
  }

  /** Enqueues a kernel; an empty grid launches nothing. */
  launch(
    kernel: Kernel,
    grid: readonly [number, number, number],
    threads: number,
    sharedBytes: number,
    args: Arguments,
  ): void {
    const [x, y, z] = grid;
    if (x === 0 || y === 0 || z === 0) return;
    const { handle, name, allowedShared } = kernel as LoadedKernel;
    if (sharedBytes > allowedShared) {
      deviceErrors(() => this.#native.allowShared(handle, sharedBytes));
      (kernel as LoadedKernel).allowedShared = sharedBytes;
    }
    const block = this.#launchBlock;
    block[0] = x;
    block[1] = y;
    block[2] = z;
    block[3] = threads;
    block[4] = sharedBytes;
    args.writeTo(block, LAUNCH_WORDS);
    this.#enqueue(name, (native) => native.launch(handle, args.byteLength));
  }

  /**
   * Enqueues a matrix product by cuBLASLt, plus an addend like the result unless that is 0. Returns false where the library is not there,
   * or has no way to do it.
   */
  multiply(shape: ProductShape, a: number, b: number, out: number, addend = 0): boolean {
    const product = this.#blas?.plan(shape);
    if (product === undefined) return false;
    const workspace = this.scratch(product.workspaceBytes);
    try {
      return this.#enqueue("cublasLtMatmul", (native) =>
        native.runProduct(product.plan, a, b, addend, out, workspace.pointer),
      );
    } finally {
      workspace.dispose();
    }
  }

  /** Temporary memory, not initialized. */
  scratch(byteLength: number): Scratch {
    const pool = this.#capture?.pool ?? this.#pool;
    return new PoolScratch(pool.take(byteLength), pool, byteLength, this.#giveBack);
  }

  /** Memory of a tensor, not initialized. */
  storage(byteLength: number): CudaStorage {
    const capture = this.#capture;
    const pool = capture?.pool ?? this.#pool;
    const block = pool.take(byteLength);
    const onUse = capture
      ? (storage: CudaStorage) => this.#holdFor(this.#capture, storage, capture)
      : this.#hold;
    return new CudaStorage(block.pointer, byteLength, onUse, () => pool.give(block));
  }

  /** Keeps memory that captured work uses; what the capture itself made is in its pool, and free again when it is disposed. */
  #holdFor(user: Capture | undefined, storage: CudaStorage, maker: Capture | undefined): void {
    if (user === undefined || user === maker || user.held.has(storage)) return;
    user.held.add(storage);
    storage.hold();
  }

  /**
   * Enqueues the work of `run` on a second stream, beside what is enqueued next: it begins when all that was enqueued before is through, and takes
   * free multiprocessors first.
   * @returns has what is enqueued after its call wait for that work; to be called before anything uses its results, and in any case
   */
  beside(run: () => void): () => void {
    const freed: PoolScratch[] = [];
    const join = () => {
      deviceErrors(() => this.#native.joinBeside());
      for (const { pool, block } of freed.splice(0)) pool.give(block);
    };
    deviceErrors(() => this.#native.beginBeside());
    this.#freedBeside = freed;
    let done = false;
    try {
      run();
      done = true;
    } finally {
      this.#freedBeside = undefined;
      deviceErrors(() => this.#native.endBeside());
      if (!done) join();
    }
    return join;
  }

  /**
   * The address of a device copy of these values, cached by content; alive at least while the operation that asked for it
   * is being enqueued.
   */
  constant(values: Int32Array): number {
    return (this.#capture?.constants ?? this.#constants).pointerOf(values);
  }

  /** Enqueues filling memory with a byte. */
  fill(pointer: number, byteLength: number, byte: number): void {
    if (byteLength > 0) this.#enqueue("fill", (native) => native.fill(pointer, byteLength, byte));
  }

  /** Enqueues a copy within the device. */
  copy(target: number, source: number, byteLength: number): void {
    if (byteLength > 0) this.#enqueue("copy", (native) => native.copy(target, source, byteLength));
  }

  /**
   * A description of a tensor in memory for the copy engine of Hopper and later (`cuTensorMapEncodeTiled`), to be given to
   * a kernel as a `const __grid_constant__ CUtensorMap`: `args.bytes(map, 64)`. Reads out of bounds give zeros.
   * @param dims extents, the innermost first
   * @param stridesBytes bytes from one to the next along each dimension but the innermost; multiples of 16
   * @param box extents of the piece that one copy moves, the innermost first
   * @param swizzle bytes of the swizzle's span in shared memory; 0 for none
   */
  tensorMap(
    pointer: number,
    dtype: keyof typeof TENSOR_MAP_TYPES,
    dims: readonly number[],
    stridesBytes: readonly number[],
    box: readonly number[],
    swizzle: keyof typeof SWIZZLES,
  ): Uint8Array {
    return deviceErrors(() =>
      this.#native.tensorMap(pointer, TENSOR_MAP_TYPES[dtype], dims, stridesBytes, box, SWIZZLES[swizzle]),
    );
  }

  /** Enqueues a copy of host data; the data is not kept. */
  upload(pointer: number, data: ArrayBufferView): void {
    if (data.byteLength === 0) return;
    this.#refuseWhileCapturing("upload tensors before it");
    deviceErrors(() => this.#native.upload(pointer, data));
  }

  /** A copy of memory, after all work enqueued so far. */
  async download(pointer: number, byteLength: number): Promise<ArrayBuffer> {
    if (byteLength === 0) return new ArrayBuffer(0);
    this.#refuseWhileCapturing("read tensors after a replay");
    return this.#wait((native) => native.download(pointer, byteLength));
  }

  /** Resolves when all work enqueued so far is done. */
  async synchronize(): Promise<void> {
    this.#refuseWhileCapturing("wait after a replay");
    return this.#wait((native) => native.synchronize());
  }

  /** Milliseconds of device time that the work enqueued by `run` takes. */
  async time(run: () => void): Promise<number> {
    this.#refuseWhileCapturing("time a replay");
    const [start, end] = this.#events(2);
    try {
      deviceErrors(() => this.#native.recordEvent(start));
      run();
      deviceErrors(() => this.#native.recordEvent(end));
      await this.synchronize();
      return deviceErrors(() => this.#native.elapsedTime(start, end));
    } finally {
      this.#destroyEvents([start, end]);
    }
  }

  /** The device time of each launch, fill and copy that `run` enqueues, in order. */
  async profile(run: () => void): Promise<LaunchTime[]> {
    this.#refuseWhileCapturing("profile operations outside of it");
    const launches: TimedLaunch[] = [];
    try {
      this.#launches = launches;
      try {
        run();
      } finally {
        this.#launches = undefined;
      }
      await this.synchronize();
      return launches.map(({ name, start, end }) => ({
        name,
        milliseconds: deviceErrors(() => this.#native.elapsedTime(start, end)),
      }));
    } finally {
      this.#destroyEvents(launches.flatMap(({ start, end }) => [start, end]));
    }
  }

  /**
   * Captures the work that `run` enqueues instead of running it. Memory that the work uses stays reserved for the graph.
   * @throws DeviceError when `run` uploads, reads or waits.
   */
  capture(run: () => void): Graph {
    this.#refuseWhileCapturing("captures do not nest");
    const main = this.#pool;
    const source = {
      allocate: (byteLength: number) => main.take(byteLength),
      free: (blocks: readonly Block[]) => {
        for (const block of blocks) main.give(block);
      },
    };
    const uploadNow = (pointer: number, values: Int32Array) =>
      deviceErrors(() => this.#native.uploadNow(pointer, values));
    const capture: Capture = {
      pool: new MemoryPool(source),
      held: new Set(),
      constants: new Constants(main, uploadNow, LASTING),
    };
    const release = () => {
      for (const storage of capture.held) storage.letGo();
      capture.constants.clear();
      capture.pool.close();
    };
    deviceErrors(() => this.#native.beginCapture());
    this.#capture = capture;
    try {
      run();
    } catch (error) {
      this.#capture = undefined;
      this.#quietly((native) => native.endCapture(false));
      release();
      throw error;
    }
    this.#capture = undefined;
    try {
      const graph = deviceErrors(() => this.#native.endCapture(true));
      return new Graph(
        () => this.#enqueue("graph", (native) => native.launchGraph(graph)),
        () => {
          if (!this.#closed) this.#quietly((native) => native.destroyGraph(graph));
          release();
        },
      );
    } catch (error) {
      release();
      throw error;
    }
  }

  /** What this device holds of the GPU's memory. */
  memory(): PoolReport {
    return this.#pool.report();
  }

  /** Starts a new high-water mark of the memory in use. */
  resetPeakMemory(): void {
    this.#pool.resetPeak();
  }

  /** Gives everything back, once the work enqueued so far is done. */
  close(): void {
    this.#closed = true;
    this.#native.close();
  }

  #refuseWhileCapturing(instead: string): void {
    if (this.#capture) throw new DeviceError("cuda", `not possible inside a capture: ${instead}`);
  }

  #enqueue<T>(name: string, call: (native: NativeDevice) => T): T {
    const timed = this.#launches && this.#timedLaunch(this.#launches, name);
    try {
      if (timed) this.#native.recordEvent(timed.start);
      const result = call(this.#native);
      if (timed) this.#native.recordEvent(timed.end);
      return result;
    } catch (error) {
      throw toDeviceError(error);
    }
  }

  #timedLaunch(launches: TimedLaunch[], name: string): TimedLaunch {
    const [start, end] = this.#events(2);
    const timed = { name, start, end };
    launches.push(timed);
    return timed;
  }

  async #wait<T>(call: (native: NativeDevice) => Promise<T>): Promise<T> {
    try {
      return await call(this.#native);
    } catch (error) {
      throw toDeviceError(error);
    }
  }

  #events(count: number): Handle[] {
    return deviceErrors(() => Array.from({ length: count }, () => this.#native.createEvent()));
  }

  #destroyEvents(events: readonly Handle[]): void {
    this.#quietly((native) => {
      for (const event of events) native.destroyEvent(event);
    });
  }

  /** For clearing up: on a lost device there is nothing to clear, and the first error is the one to report. */
  #quietly(call: (native: NativeDevice) => void): void {
    try {
      call(this.#native);
    } catch {}
  }
}

/** The best path that the device can run, or the wanted one. */
function choosePath(name: string, computeCapability: number, wanted: KernelPath | undefined): KernelPath {
  if (computeCapability < 80) {
    throw new DeviceError("cuda", `${name} has compute capability ${computeCapability / 10}; 8.0 is needed`);
  }
  const best: KernelPath = Math.floor(computeCapability / 10) === 9 ? "sm90" : "sm80";
  if (wanted === undefined) return best;
  const allowed = PATHS.slice(0, PATHS.indexOf(best) + 1);
  if (!allowed.includes(wanted)) throw new ArgumentError("path", wanted, `one of ${allowed.join(", ")}`);
  return wanted;
}

function checkBytes(argument: string, value: number | undefined, missing: number): number {
  if (value === undefined) return missing;
  if (!(value > 0)) throw new ArgumentError(argument, value, "a positive number of bytes");
  return value;
}

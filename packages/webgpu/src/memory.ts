/// <reference types="@webgpu/types" />
import { DeviceError, type Storage } from "@moba-js/tensor";

/** Buffer usages by their numbers: their names are globals in browsers only. */
export const USAGE = {
  mapRead: 1,
  copySource: 4,
  copyTarget: 8,
  uniform: 64,
  storage: 128,
  queryResolve: 512,
};

/** What a backend's buffers hold: see `WebGpuBackend.poolReport`. */
export interface PoolReport {
  /** Bytes of buffers in use, by tensors and by kernels' workspace; each is rounded up to the size of its buffer. */
  usedBytes: number;
  /** Bytes of buffers kept for the next use. */
  keptBytes: number;
  /** The most bytes in use and kept at once so far. */
  peakBytes: number;
  /** Buffers made so far. */
  buffersMade: number;
}

/**
 * The size of the buffer that holds `bytes`: a multiple of 256, at most a quarter more than asked for, so that buffers of like sizes
 * can stand in for each other. Kernels may read and write up to the next multiple of 16 bytes.
 */
export function bufferSize(bytes: number): number {
  const step = Math.max(256, 2 ** (Math.floor(Math.log2(Math.max(bytes, 1))) - 2));
  return Math.max(256, Math.ceil(bytes / step) * step);
}

/** A buffer of the pool, as a tensor's storage or a kernel's workspace. */
export class PooledBuffer implements Storage {
  /** The submission that used it last; the pool's owner sets it. */
  lastUse = -1;

  constructor(
    readonly buffer: GPUBuffer,
    readonly byteLength: number,
    private readonly giveBack: (piece: PooledBuffer) => void,
  ) {}

  free(): void {
    this.giveBack(this);
  }
}

/**
 * Buffers by size, kept when they are freed, for the next that needs one. A buffer may be given out again while commands that
 * use it wait in a queue: the queue runs in order.
 */
export class BufferPool {
  /** By size, in each the longest kept first. */
  readonly #kept = new Map<number, PooledBuffer[]>();
  /** The same, the longest kept first. */
  readonly #byAge = new Set<PooledBuffer>();
  #usedBytes = 0;
  #keptBytes = 0;
  #peakBytes = 0;
  #buffersMade = 0;
  #closed = false;

  /**
   * @param makeBuffer makes a buffer of a size
   * @param destroyLater destroys a buffer once the commands collected so far are submitted
   * @param maxKeptBytes what is kept at most
   * @param maxBufferSize the device's limit
   */
  constructor(
    private readonly makeBuffer: (size: number) => GPUBuffer,
    private readonly destroyLater: (buffer: GPUBuffer) => void,
    private readonly maxKeptBytes: number,
    private readonly maxBufferSize: number,
  ) {}

  /**
   * A buffer that holds `bytes`, with whatever is in it.
   * @throws DeviceError when the device has no buffers of that size.
   */
  take(bytes: number): PooledBuffer {
    const size = Math.min(bufferSize(bytes), this.maxBufferSize);
    if (bytes > size) {
      throw new DeviceError(
        "webgpu",
        `no memory for ${bytes} bytes: a buffer holds ${this.maxBufferSize} at most`,
      );
    }
    const kept = this.#kept.get(size)?.pop();
    const buffer = kept?.buffer ?? this.makeBuffer(size);
    if (kept) {
      this.#byAge.delete(kept);
      this.#keptBytes -= size;
    } else {
      this.#buffersMade += 1;
    }
    this.#usedBytes += size;
    this.#peakBytes = Math.max(this.#peakBytes, this.#usedBytes + this.#keptBytes);
    const piece = new PooledBuffer(buffer, bytes, (freed) => this.#give(freed));
    if (kept) piece.lastUse = kept.lastUse; // by commands that may still wait
    return piece;
  }

  #give(piece: PooledBuffer): void {
    const { buffer } = piece;
    const { size } = buffer;
    this.#usedBytes -= size;
    if (this.#closed) {
      buffer.destroy();
      return;
    }
    if (size > this.maxKeptBytes) {
      this.destroyLater(buffer);
      return;
    }
    while (this.#keptBytes + size > this.maxKeptBytes) this.#dropOldest();
    const kept = this.#kept.get(size);
    if (kept) kept.push(piece);
    else this.#kept.set(size, [piece]);
    this.#byAge.add(piece);
    this.#keptBytes += size;
  }

  /** Lets go what nobody has asked for the longest. */
  #dropOldest(): void {
    const [oldest] = this.#byAge;
    if (!oldest) return;
    const { buffer } = oldest;
    this.#byAge.delete(oldest);
    this.#kept.get(buffer.size)?.shift();
    this.#keptBytes -= buffer.size;
    this.destroyLater(buffer);
  }

  /** What the pool holds. */
  report(): PoolReport {
    return {
      usedBytes: this.#usedBytes,
      keptBytes: this.#keptBytes,
      peakBytes: this.#peakBytes,
      buffersMade: this.#buffersMade,
    };
  }

  /** Destroys the kept buffers now, and each other one when it is freed. */
  close(): void {
    this.#closed = true;
    for (const pieces of this.#kept.values()) for (const { buffer } of pieces) buffer.destroy();
    this.#kept.clear();
    this.#byAge.clear();
    this.#keptBytes = 0;
  }
}

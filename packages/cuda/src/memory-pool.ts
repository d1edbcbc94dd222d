import { DeviceError } from "@moba-js/tensor";

/** A piece of device memory. */
export interface Block {
  /** Its address; 0 for a block of no bytes. */
  readonly pointer: number;
  readonly byteLength: number;
}

/** Where a {@link MemoryPool} gets its memory from. */
export interface MemorySource {
  /** A block of at least so many bytes, or undefined when there is no memory left. */
  allocate(byteLength: number): Block | undefined;
  /** Takes blocks back, whose use may still be enqueued. */
  free(blocks: readonly Block[]): void;
}

/** What a pool of device memory holds, in bytes. */
export interface PoolReport {
  /** Handed out. */
  readonly usedBytes: number;
  /** Kept for reuse. */
  readonly cachedBytes: number;
  /** The most handed out at once, since the start or the last `resetPeak`. */
  readonly peakUsedBytes: number;
}

const SMALLEST_CLASS = 512;
/** Smaller blocks come in powers of two: many requests of all small sizes soon find what others have given back. */
const LARGE = 2 ** 23;
/** Classes a doubling of larger blocks: at most 1/16 of one is unused. */
const CLASSES_PER_OCTAVE = 16;
/** How many classes larger than needed a block may be that is reused. */
const REUSE_CLASSES = 2;

/** The largest power of two up to a number ≥ 1. */
const largestPower = (x: number): number =>
  x < 2 ** 31 ? 1 << (31 - Math.clz32(x)) : 2 ** Math.floor(Math.log2(x));

/** The size of the blocks that serve requests of so many bytes. */
export function sizeClass(byteLength: number): number {
  const octave = largestPower(Math.max(byteLength, 1));
  const step = Math.max(SMALLEST_CLASS, byteLength < LARGE ? octave : octave / CLASSES_PER_OCTAVE);
  return Math.ceil(Math.max(byteLength, 1) / step) * step;
}

/**
 * Memory in blocks of few sizes, kept when given back and handed out again. All users enqueue on one stream, so a block
 * may be handed out while work on it is still enqueued: the new work comes after it.
 */
export class MemoryPool {
  readonly #source: MemorySource;
  readonly #maxBytes: number;
  /** By size. */
  readonly #free = new Map<number, Block[]>();
  #used = 0;
  #cached = 0;
  #peak = 0;
  #closed = false;

  /** @param maxBytes the most to hold, cached blocks included */
  constructor(source: MemorySource, maxBytes = Number.POSITIVE_INFINITY) {
    this.#source = source;
    this.#maxBytes = maxBytes;
  }

  /** What the pool holds now. */
  report(): PoolReport {
    return { usedBytes: this.#used, cachedBytes: this.#cached, peakUsedBytes: this.#peak };
  }

  /** Starts a new high-water mark at what is handed out now. */
  resetPeak(): void {
    this.#peak = this.#used;
  }

  /**
   * A block of at least `byteLength` bytes.
   * @throws DeviceError when there is no memory, also after giving back what is cached.
   */
  take(byteLength: number): Block {
    if (byteLength === 0) return { pointer: 0, byteLength: 0 };
    const block = this.#reuse(byteLength) ?? this.#allocate(byteLength);
    this.#used += block.byteLength;
    this.#peak = Math.max(this.#peak, this.#used);
    return block;
  }

  /** Takes a block back. */
  give(block: Block): void {
    if (block.byteLength === 0) return;
    this.#used -= block.byteLength;
    this.#cached += block.byteLength;
    const list = this.#free.get(block.byteLength);
    if (list) list.push(block);
    else this.#free.set(block.byteLength, [block]);
    if (this.#closed) this.release();
  }

  /** Gives what is cached back to the source. */
  release(): void {
    const blocks = [...this.#free.values()].flat();
    this.#free.clear();
    this.#cached = 0;
    if (blocks.length > 0) this.#source.free(blocks);
  }

  /** Gives everything back to the source: what is cached now, and what is handed out as it comes back. */
  close(): void {
    this.#closed = true;
    this.release();
  }

  #reuse(byteLength: number): Block | undefined {
    let size = sizeClass(byteLength);
    for (let i = 0; i <= REUSE_CLASSES; i++, size = sizeClass(size + 1)) {
      const block = this.#free.get(size)?.pop();
      if (block === undefined) continue;
      this.#cached -= size;
      return block;
    }
    return undefined;
  }

  #allocate(byteLength: number): Block {
    const size = sizeClass(byteLength);
    const cached = this.#cached;
    if (this.#used + cached + size > this.#maxBytes) this.release();
    if (this.#used + size <= this.#maxBytes) {
      const block = this.#source.allocate(size);
      if (block) return block;
      this.release();
      const retried = cached > 0 ? this.#source.allocate(size) : undefined;
      if (retried) return retried;
    }
    const limit = Number.isFinite(this.#maxBytes) ? `, maxBytes is ${this.#maxBytes}` : "";
    throw new DeviceError(
      "cuda",
      `CUDA_ERROR_OUT_OF_MEMORY: no memory for ${byteLength} bytes (${this.#used} in use, ${cached} were cached and given back${limit})`,
    );
  }
}

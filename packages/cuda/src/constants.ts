import type { Block, MemoryPool } from "./memory-pool.js";

/** How many constants are kept: at most so many, and beyond the last few at most so many bytes. */
interface Limits {
  readonly most: number;
  readonly few: number;
  readonly bytes: number;
}

/** For constants of operations that come and go. The last few are those of the operation under way. */
export const PASSING: Limits = { most: 256, few: 32, bytes: 2 ** 26 };
/** For constants of captured work. */
export const LASTING: Limits = { most: Number.POSITIVE_INFINITY, few: 0, bytes: Number.POSITIVE_INFINITY };

/** Device copies of small integer arrays, by content. */
export class Constants {
  readonly #pool: MemoryPool;
  readonly #upload: (pointer: number, values: Int32Array) => void;
  readonly #limits: Limits;
  /** The last used last. */
  readonly #blocks = new Map<string, Block>();
  #bytes = 0;

  constructor(pool: MemoryPool, upload: (pointer: number, values: Int32Array) => void, limits: Limits) {
    this.#pool = pool;
    this.#upload = upload;
    this.#limits = limits;
  }

  /** The address of a copy of these values; 0 for none. */
  pointerOf(values: Int32Array): number {
    if (values.length === 0) return 0;
    const content = Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("latin1");
    const block = this.#blocks.get(content) ?? this.#add(values);
    this.#blocks.delete(content);
    this.#blocks.set(content, block);
    this.#dropOldest();
    return block.pointer;
  }

  /** Gives all memory back. */
  clear(): void {
    for (const block of this.#blocks.values()) this.#pool.give(block);
    this.#blocks.clear();
    this.#bytes = 0;
  }

  #add(values: Int32Array): Block {
    const block = this.#pool.take(values.byteLength);
    this.#upload(block.pointer, values);
    this.#bytes += block.byteLength;
    return block;
  }

  #dropOldest(): void {
    const { most, few, bytes } = this.#limits;
    for (const [content, block] of this.#blocks) {
      const count = this.#blocks.size;
      if (count <= few || (count <= most && this.#bytes <= bytes)) return;
      this.#blocks.delete(content);
      this.#bytes -= block.byteLength;
      this.#pool.give(block);
    }
  }
}

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

/** A device copy of some values. */
interface Constant {
  readonly values: Int32Array;
  readonly block: Block;
}

/** Device copies of small integer arrays, by content. */
export class Constants {
  readonly #pool: MemoryPool;
  readonly #upload: (pointer: number, values: Int32Array) => void;
  readonly #limits: Limits;
  /** By hash, or the next number that was free; the last used last. */
  readonly #constants = new Map<number, Constant>();
  #bytes = 0;

  constructor(pool: MemoryPool, upload: (pointer: number, values: Int32Array) => void, limits: Limits) {
    this.#pool = pool;
    this.#upload = upload;
    this.#limits = limits;
  }

  /** The address of a copy of these values; 0 for none. */
  pointerOf(values: Int32Array): number {
    if (values.length === 0) return 0;
    let key = hashOf(values);
    let constant = this.#constants.get(key);
    while (constant !== undefined && !areSame(constant.values, values)) constant = this.#constants.get(++key);
    constant ??= this.#add(values);
    this.#constants.delete(key);
    this.#constants.set(key, constant);
    if (this.#isFull()) this.#dropOldest();
    return constant.block.pointer;
  }

  /** Gives all memory back. */
  clear(): void {
    for (const { block } of this.#constants.values()) this.#pool.give(block);
    this.#constants.clear();
    this.#bytes = 0;
  }

  #add(values: Int32Array): Constant {
    const block = this.#pool.take(values.byteLength);
    this.#upload(block.pointer, values);
    this.#bytes += block.byteLength;
    return { values: values.slice(), block };
  }

  #isFull(): boolean {
    const { most, few, bytes } = this.#limits;
    const count = this.#constants.size;
    return count > few && (count > most || this.#bytes > bytes);
  }

  #dropOldest(): void {
    for (const [key, { block }] of this.#constants) {
      this.#constants.delete(key);
      this.#bytes -= block.byteLength;
      this.#pool.give(block);
      if (!this.#isFull()) return;
    }
  }
}

/** FNV-1a over the values. */
function hashOf(values: Int32Array): number {
  let hash = values.length;
  for (let i = 0; i < values.length; i++) hash = Math.imul(hash ^ values[i], 0x01000193);
  return hash;
}

function areSame(one: Int32Array, other: Int32Array): boolean {
  if (one.length !== other.length) return false;
  for (let i = 0; i < one.length; i++) if (one[i] !== other[i]) return false;
  return true;
}

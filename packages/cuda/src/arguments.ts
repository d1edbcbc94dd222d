/** For the bits of a float. */
const float = new Float32Array(1);
const floatBits = new Int32Array(float.buffer);

/**
 * The parameters of a kernel, packed as C packs the members of a struct: each at the next multiple of its alignment. Launches make many of
 * them, so they are numbers of 32 bits in an array: a typed array costs several times as much to make.
 */
export class Arguments {
  readonly #words: number[] = [];

  /** How many bytes there are. */
  get byteLength(): number {
    return 4 * this.#words.length;
  }

  /** The packed bytes. */
  get packed(): Uint8Array {
    return new Uint8Array(new Int32Array(this.#words).buffer);
  }

  /** Writes the packed bytes into memory of 32-bit words, from this word on. */
  writeTo(target: Int32Array, at: number): void {
    const words = this.#words;
    for (let i = 0; i < words.length; i++) target[at + i] = words[i];
  }

  /** A device address. */
  pointer(value: number): this {
    return this.long(value);
  }

  /** An `int` or `unsigned`. */
  int(value: number): this {
    this.#words.push(value | 0);
    return this;
  }

  /** A `long long` that is a safe integer. */
  long(value: number): this {
    if (this.#words.length % 2 !== 0) this.#words.push(0);
    this.#words.push(value | 0, Math.floor(value / 2 ** 32) | 0);
    return this;
  }

  /** A `float`. */
  float(value: number): this {
    float[0] = value;
    this.#words.push(floatBits[0]);
    return this;
  }

  /** A struct of 32-bit words or larger members, given by its bytes: a tensor map with alignment 64, for example. */
  bytes(data: Uint8Array, alignment: number): this {
    const words = this.#words;
    while ((4 * words.length) % alignment !== 0) words.push(0);
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    for (let at = 0; at < data.length; at += 4) words.push(view.getInt32(at, true));
    return this;
  }
}

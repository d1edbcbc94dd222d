/** The parameters of a kernel, packed as C packs the members of a struct: each at the next multiple of its alignment. */
export class Arguments {
  #bytes = new Uint8Array(256);
  #view = new DataView(this.#bytes.buffer);
  #length = 0;

  /** The packed bytes. */
  get packed(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  /** A device address. */
  pointer(value: number): this {
    return this.long(value);
  }

  /** An `int` or `unsigned`. */
  int(value: number): this {
    const at = this.#place(4, 4); // may replace the view
    this.#view.setInt32(at, value, true);
    return this;
  }

  /** A `long long` that is a safe integer. */
  long(value: number): this {
    const at = this.#place(8, 8);
    this.#view.setUint32(at, value % 2 ** 32, true);
    this.#view.setInt32(at + 4, Math.floor(value / 2 ** 32), true);
    return this;
  }

  /** A `float`. */
  float(value: number): this {
    const at = this.#place(4, 4);
    this.#view.setFloat32(at, value, true);
    return this;
  }

  /** A struct given by its bytes: a tensor map with alignment 64, for example. */
  bytes(data: Uint8Array, alignment: number): this {
    const at = this.#place(data.length, alignment);
    this.#bytes.set(data, at);
    return this;
  }

  /** Room for a member: its offset. */
  #place(size: number, alignment: number): number {
    const at = Math.ceil(this.#length / alignment) * alignment;
    this.#length = at + size;
    if (this.#length > this.#bytes.length) {
      const grown = new Uint8Array(2 * this.#length);
      grown.set(this.#bytes);
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    return at;
  }
}

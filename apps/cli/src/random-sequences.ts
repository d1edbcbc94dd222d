import { type Backend, cuSeqlensFromLengths, type FloatDType, type Tensor } from "@moba-js/tensor";
import { normalTensor } from "./normal-tensor.js";
import { type Generator, integer } from "./random.js";

/** Extents of {@link RandomSequences}. */
export interface SequenceExtents {
  readonly sequences: number;
  /** Of each. */
  readonly tokens: number;
  /** A token has rows of `headDim` values for so many heads. */
  readonly heads: number;
  readonly headDim: number;
  readonly dtype: FloatDType;
}

/** So many values are drawn. */
const DRAWN = 2 ** 22;

/**
 * Sequences of standard normal keys (or values) of one length. Where they have more than {@link DRAWN} values they are put
 * together on the device, of one random piece that begins again and again, each time at a random place.
 */
export class RandomSequences implements Disposable {
  /** One for all sequences, or one for each. */
  readonly #pieces: readonly Tensor<FloatDType>[];
  /** Where the pieces of each sequence begin; later ones lie over earlier ones. */
  readonly #offsets: readonly (readonly number[])[];

  constructor(
    private readonly backend: Backend,
    random: Generator,
    private readonly extents: SequenceExtents,
  ) {
    const { sequences, tokens, heads, headDim, dtype } = extents;
    const fitting = Math.floor(DRAWN / (heads * headDim));
    const whole = sequences * tokens <= fitting;
    const rows = whole ? tokens : Math.min(fitting, Math.ceil(tokens / 2));
    this.#pieces = Array.from({ length: whole ? sequences : 1 }, () =>
      normalTensor(backend, random, [rows, heads, headDim], dtype),
    );
    this.#offsets = Array.from({ length: sequences }, () => {
      const offsets: number[] = [];
      for (let at = 0; at < tokens - rows; at += 1 + integer(random, rows)) offsets.push(at);
      return [...offsets, tokens - rows];
    });
  }

  /** Some of the sequences in a row, each with zeros for `added` more tokens: `[sequences.length · (tokens + added), heads, d]`. */
  packed(sequences: readonly number[], added: number): Tensor<FloatDType> {
    const { tokens, heads, headDim, dtype } = this.extents;
    const target = this.backend.zeros([sequences.length * (tokens + added), heads, headDim], dtype);
    sequences.forEach((sequence, i) => {
      const piece = this.#pieces[sequence % this.#pieces.length];
      const cuSeqlens = cuSeqlensFromLengths([piece.shape[0]]);
      for (const offset of this.#offsets[sequence]) {
        this.backend.copyRows(target, piece, { cuSeqlens, offsets: [i * (tokens + added) + offset] });
      }
    });
    return target;
  }

  /** Gives the pieces back. */
  [Symbol.dispose](): void {
    for (const piece of this.#pieces) piece.dispose();
  }
}

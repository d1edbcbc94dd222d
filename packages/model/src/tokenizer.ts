/** Turns text into tokens and back. */
export interface Tokenizer {
  /** Tokens that it knows: every token is below. */
  readonly vocabulary: number;
  /** The token that stands between documents: before the first token of each, and after the last. */
  readonly end: number;
  /** The tokens of a text, without end marks. */
  encode(text: string): Int32Array;
  /** The text of tokens; end marks give nothing. Bytes that are no UTF-8 give U+FFFD. */
  decode(tokens: ArrayLike<number>): string;
}

/** The tokenizer without a vocabulary: the UTF-8 bytes of the text, and 256 as the end mark. */
export class ByteTokenizer implements Tokenizer {
  readonly vocabulary = 257;
  readonly end = 256;

  /** The bytes of a text. */
  encode(text: string): Int32Array {
    return Int32Array.from(new TextEncoder().encode(text));
  }

  /** The text of bytes. */
  decode(tokens: ArrayLike<number>): string {
    const bytes = Uint8Array.from(Array.from(tokens).filter((token) => token < this.end));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  }
}

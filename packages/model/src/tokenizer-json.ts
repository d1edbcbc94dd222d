import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { FormatError } from "@moba-js/tensor";
import type { Tokenizer } from "./tokenizer.js";

/** End marks that are looked for when none is named. */
const END_MARKS = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]"];

/** Options of a {@link JsonTokenizer}. */
export interface JsonTokenizerOptions {
  /** The end mark, as the vocabulary spells it. Default: the first of `<|endoftext|>`, `<|end_of_text|>`, `</s>`, `<eos>`, `[EOS]`. */
  readonly end?: string;
}

/** A tokenizer of Hugging Face's `tokenizer.json` format. */
export class JsonTokenizer implements Tokenizer {
  readonly vocabulary: number;
  readonly end: number;
  readonly #tokenizer: HuggingFaceTokenizer;

  /**
   * @param source what the file is called, for messages
   * @param json contents of `tokenizer.json`
   * @throws FormatError when it is no tokenizer that can be used, or has no end mark
   */
  constructor(
    private readonly source: string,
    json: string,
    options: JsonTokenizerOptions = {},
  ) {
    const parsed = this.#guard(() => JSON.parse(json) as unknown);
    if (typeof parsed !== "object" || parsed === null) throw new FormatError(source, "no JSON object");
    this.#tokenizer = this.#guard(() => new HuggingFaceTokenizer(parsed, {}));
    const ids = this.#guard(() => [...this.#tokenizer.get_vocab().values()]);
    if (!ids.every((id) => Number.isInteger(id) && id >= 0 && id < 2 ** 31) || ids.length === 0) {
      throw new FormatError(source, "the vocabulary's tokens are no integers from 0 on");
    }
    this.vocabulary = ids.reduce((most, id) => Math.max(most, id + 1), 0);
    const marks = options.end === undefined ? END_MARKS : [options.end];
    const end = marks.map((mark) => this.#tokenizer.token_to_id(mark)).find((id) => id !== undefined);
    if (end === undefined)
      throw new FormatError(source, `none of the end marks ${marks.join(" ")} is in the vocabulary`);
    this.end = end;
  }

  /** The tokens of a text. @throws FormatError when the tokenizer turns out to be broken */
  encode(text: string): Int32Array {
    const { ids } = this.#guard(() => this.#tokenizer.encode(text, { add_special_tokens: false }));
    if (!Array.isArray(ids) || !ids.every((id) => Number.isInteger(id) && id >= 0 && id < this.vocabulary)) {
      throw new FormatError(this.source, `gives tokens that are not below ${this.vocabulary}`);
    }
    return Int32Array.from(ids);
  }

  /** The text of tokens. @throws FormatError when the tokenizer turns out to be broken */
  decode(tokens: ArrayLike<number>): string {
    const kept = Array.from(tokens).filter((token) => token !== this.end);
    if (kept.length === 0) return "";
    return this.#guard(() => this.#tokenizer.decode(kept, { clean_up_tokenization_spaces: false }));
  }

  /** The library throws whatever a broken file leads it to. */
  #guard<T>(run: () => T): T {
    try {
      return run();
    } catch (cause) {
      throw new FormatError(this.source, `no usable tokenizer (${(cause as Error).message})`);
    }
  }
}

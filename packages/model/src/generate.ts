import { Random } from "@moba-js/snr";
import { ArgumentError, checkPositiveInteger } from "@moba-js/tensor";
import { KvCache } from "./cache.js";
import { checkSampling, type SamplingOptions, sampleToken } from "./sampling.js";
import { Tape, Variable } from "./tape.js";
import type { Tokenizer } from "./tokenizer.js";
import type { Transformer } from "./transformer.js";

/** How text is generated. */
export interface GenerateOptions extends SamplingOptions {
  /** The most tokens that each prompt is continued by. */
  readonly maxTokens: number;
  /** Texts that end a continuation, none of them empty; they are not part of it. Default: none. */
  readonly stop?: readonly string[];
  /** Seed of the choices. Default 0. */
  readonly seed?: number;
  /** Tokens of each prompt that are read at once. Default 512. */
  readonly prefillTokens?: number;
}

/** Why a continuation ended: the model's end mark, a stop text, or `maxTokens`. */
export type FinishReason = "end" | "stop" | "length";

/** A piece of a continuation, as soon as it is known. */
export interface GeneratedPiece {
  /** The prompt that it continues, by number. */
  readonly prompt: number;
  /** Text after that of the piece before; may be empty in the last one. */
  readonly text: string;
  /** In the last piece of a continuation. */
  readonly finished?: FinishReason;
}

/**
 * Continues prompts, all at once, token by token. MoBA layers decode sparsely: see {@link KvCache}.
 * @throws ArgumentError for options out of range, or a tokenizer with more tokens than the model
 */
export async function* generate(
  model: Transformer,
  tokenizer: Tokenizer,
  prompts: readonly string[],
  options: GenerateOptions,
): AsyncGenerator<GeneratedPiece, void, void> {
  const { maxTokens, stop = [], seed = 0, prefillTokens = 512 } = options;
  checkPositiveInteger("maxTokens", maxTokens);
  checkPositiveInteger("prefillTokens", prefillTokens);
  checkSampling(options);
  if (stop.includes("")) throw new ArgumentError("stop", stop, "texts that are not empty");
  if (tokenizer.vocabulary > model.config.vocabulary) {
    throw new ArgumentError(
      "tokenizer",
      tokenizer.vocabulary,
      `at most ${model.config.vocabulary} tokens, as the model has`,
    );
  }
  if (prompts.length === 0) return;
  const random = new Random(seed);
  const encoded = prompts.map((prompt) => [tokenizer.end, ...tokenizer.encode(prompt)]);
  const longest = Math.max(...encoded.map(({ length }) => length));
  using cache = new KvCache(model, { batch: prompts.length, capacity: longest + maxTokens });
  const continuations = prompts.map(() => new Continuation(tokenizer, stop, maxTokens));
  let logits = await prefill(model, cache, encoded, prefillTokens);
  while (logits.some((row) => row !== undefined)) {
    const next: number[][] = prompts.map(() => []);
    for (const [prompt, row] of logits.entries()) {
      if (!row) continue;
      const token = sampleToken(row, options, random);
      const piece = continuations[prompt].add(token);
      if (piece.text || piece.finished) yield { prompt, ...piece };
      if (!piece.finished) next[prompt].push(token);
    }
    logits = await nextLogits(model, cache, next);
  }
}

/** Reads the prompts in chunks. Returns the logits after the last token of each. */
async function prefill(
  model: Transformer,
  cache: KvCache,
  prompts: readonly number[][],
  chunk: number,
): Promise<(Float64Array | undefined)[]> {
  const result: (Float64Array | undefined)[] = prompts.map(() => undefined);
  const longest = Math.max(...prompts.map(({ length }) => length));
  for (let begin = 0; begin < longest; begin += chunk) {
    const pieces = prompts.map((tokens) => tokens.slice(begin, begin + chunk));
    const logits = await nextLogits(model, cache, pieces);
    for (const [i, row] of logits.entries()) if (row) result[i] = row;
  }
  return result;
}

/** Extends each sequence, and gives the logits after its last new token; nothing for a sequence without any. */
async function nextLogits(
  model: Transformer,
  cache: KvCache,
  sequences: readonly number[][],
): Promise<(Float64Array | undefined)[]> {
  const { backend } = model;
  const lastRows: number[] = [];
  let rows = 0;
  for (const { length } of sequences) {
    rows += length;
    if (length > 0) lastRows.push(rows - 1);
  }
  if (rows === 0) return sequences.map(() => undefined);
  using logits = backend.scope(() => {
    const hidden = cache.extend(sequences);
    const last = backend.embedding(hidden, backend.tensor(lastRows, [lastRows.length], "i32"));
    return model.logits(new Tape(backend, { record: false }), new Variable(last)).value;
  });
  const values = await logits.values();
  const { vocabulary } = model.config;
  let row = 0;
  return sequences.map(({ length }) =>
    length > 0 ? values.subarray(row * vocabulary, ++row * vocabulary) : undefined,
  );
}

/** The text of one continuation as its tokens come in. */
class Continuation {
  readonly #tokens: number[] = [];
  /** The text of the tokens before `read` is known; decoding starts at `context`, since tokens may depend on those before. */
  #context = 0;
  #read = 0;
  /** Known text that is not given out: it may be the beginning of a stop text. */
  #held = "";

  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly stop: readonly string[],
    private readonly maxTokens: number,
  ) {}

  /** Takes a token; returns the text that is certain now. */
  add(token: number): { text: string; finished?: FinishReason } {
    if (token === this.tokenizer.end) return { text: this.#flush(), finished: "end" };
    this.#tokens.push(token);
    const atLimit = this.#tokens.length >= this.maxTokens;
    this.#held += this.#decode(atLimit);
    const stops = this.stop.map((text) => this.#held.indexOf(text)).filter((at) => at >= 0);
    if (stops.length > 0) return { text: this.#held.slice(0, Math.min(...stops)), finished: "stop" };
    if (atLimit) return { text: this.#flush(), finished: "length" };
    const keep = longestPrefixAtEnd(this.#held, this.stop);
    const text = this.#held.slice(0, this.#held.length - keep);
    this.#held = this.#held.slice(text.length);
    return { text };
  }

  #flush(): string {
    const text = this.#held + this.#decode(true);
    this.#held = "";
    return text;
  }

  /** Text of the tokens that came in, unless it ends inside a character; `atEnd`, whatever it is. */
  #decode(atEnd: boolean): string {
    const known = this.tokenizer.decode(this.#tokens.slice(this.#context, this.#read));
    const text = this.tokenizer.decode(this.#tokens.slice(this.#context));
    if (!atEnd && text.endsWith("\ufffd")) return "";
    this.#context = this.#read;
    this.#read = this.#tokens.length;
    return text.slice(known.length);
  }
}

/** The length of the longest end of `text` that begins one of the stop texts. */
function longestPrefixAtEnd(text: string, stop: readonly string[]): number {
  const most = Math.min(text.length, Math.max(0, ...stop.map(({ length }) => length - 1)));
  for (let length = most; length > 0; length--) {
    if (stop.some((candidate) => candidate.startsWith(text.slice(-length)))) return length;
  }
  return 0;
}

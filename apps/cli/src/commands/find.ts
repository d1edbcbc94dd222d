import type { Backend } from "@moba-js/tensor";
import { Directions } from "../directions.js";
import { count, type Output, percent } from "../output.js";
import { type Passage, search } from "../search.js";
import { loadText, type Text } from "../text.js";

/** Options of `moba find`. */
export interface FindOptions {
  /** A text file; Moby Dick when there is none. */
  readonly text?: string;
  readonly blockSize: number;
  readonly topK: number;
  /** How many passages to print. */
  readonly passages: number;
  readonly seed: number;
}

/** The more dimensions, the fewer false friends among the blocks. */
const HEAD_DIM = 128;

/** Words printed before and after a passage. */
const CONTEXT = 10;

/** Where a token is: line of a file, or word of a chapter. */
function placeOf({ sections, tokens }: Text, token: number): string {
  const { section, start } = tokens[token];
  const { title, text } = sections[section];
  if (sections.length === 1) return `${title}, line ${text.slice(0, start).split("\n").length}`;
  const first = tokens.findIndex((other) => other.section === section);
  return `${title}, word ${count(token - first + 1)}`;
}

/** A passage with some context, on one line; `mark` is applied to the wanted words. It stays in its peak's section. */
function excerpt(
  { sections, tokens }: Text,
  { first, last, peak }: Passage,
  wanted: ReadonlySet<string>,
  mark: (word: string) => string,
): string {
  const { section } = tokens[peak];
  const shown = tokens
    .slice(Math.max(0, first - CONTEXT), last + CONTEXT + 1)
    .filter((token) => token.section === section);
  const { text } = sections[section];
  const words = shown.map(({ word, start, end }, i) => {
    const written = text.slice(start, end);
    const after = text.slice(end, shown[i + 1]?.start ?? end);
    return (wanted.has(word) ? mark(written) : written) + after;
  });
  return words.join("").replace(/\s+/g, " ");
}

/**
 * `moba find`: the passages of a text that a phrase attends to most.
 * @throws FormatError for a text that cannot be used; ArgumentError for a phrase without a word of the text.
 */
export async function find(
  backend: Backend,
  phrase: string,
  options: FindOptions,
  output: Output,
): Promise<void> {
  const { blockSize, topK, seed } = options;
  const text = await loadText(options.text, 1);
  const found = await search(backend, text, phrase, new Directions(seed, HEAD_DIM), { blockSize, topK });
  const wanted = new Set(found.known);
  const passages = found.passages.slice(0, options.passages);
  const keysRead = Math.min(1, (found.chosen * blockSize) / text.tokens.length);

  output.print(`${phrase}: ${text.name}, ${count(text.tokens.length)} words`);
  output.print(
    `backend ${backend.name}, seed ${seed}, d = ${HEAD_DIM}; ${count(found.chosen)} of ${count(found.blocks)} blocks of ` +
      `${blockSize} attended, ${percent(keysRead)} of the keys`,
  );
  if (found.unknown.length > 0) output.print(`not in the text: ${found.unknown.join(", ")}`);
  passages.forEach((passage, i) => {
    const line = excerpt(text, passage, wanted, (word) => output.highlight(word));
    output.print();
    output.print(`${i + 1}. ${placeOf(text, passage.peak)} (${percent(passage.weight)})`);
    output.print(`   … ${line} …`);
  });
  output.result({
    phrase,
    text: { name: text.name, words: text.tokens.length },
    backend: backend.name,
    seed,
    headDim: HEAD_DIM,
    blockSize,
    topK,
    ...found,
    keysRead,
    passages: passages.map((passage) => ({
      place: placeOf(text, passage.peak),
      ...passage,
      text: excerpt(text, passage, wanted, (word) => word),
    })),
  });
}

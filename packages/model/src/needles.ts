import { Random } from "@moba-js/snr";
import { ArgumentError, checkPositiveInteger } from "@moba-js/tensor";
import { generate } from "./generate.js";
import type { Tokenizer } from "./tokenizer.js";
import type { Transformer } from "./transformer.js";

/**
 * RULER's single-needle tasks (arXiv 2404.06654): find the value of a key that one sentence of a long text names.
 * - `"s-niah-1"`: a text of the same sentences again and again; the value is a number of 7 digits
 * - `"s-niah-2"`: a real text; a number
 * - `"s-niah-3"`: a real text; a UUID
 */
export type NeedleTask = "s-niah-1" | "s-niah-2" | "s-niah-3";

/** What one problem is made of. */
export interface NeedleOptions {
  readonly task: NeedleTask;
  /** The text to hide the needle in; of `"s-niah-1"` not used. Repeated where it is too short. */
  readonly text: string;
  readonly tokenizer: Tokenizer;
  /** The most tokens of the prompt. The text is cut at sentences to come close. */
  readonly tokens: number;
  /** Where the needle is: 0 at the begin of the text, 1 at its end. */
  readonly depth: number;
  /** Seed of key and value. */
  readonly seed: number;
}

/** A problem: the right continuation of the prompt contains the answer. */
export interface NeedleProblem {
  readonly prompt: string;
  readonly answer: string;
  /** The sentence that holds the answer. */
  readonly needle: string;
}

/** RULER's haystack of the first task. */
const NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";

const KEYS = [
  "amber",
  "basin",
  "cedar",
  "delta",
  "ember",
  "fjord",
  "grove",
  "heron",
  "islet",
  "jetty",
  "kelp",
  "lagoon",
];

const hex = (random: Random, digits: number): string =>
  Array.from({ length: digits }, () => random.integer(16).toString(16)).join("");

/**
 * Makes a problem.
 * @throws ArgumentError when the prompt would be longer than `tokens` even without a text, or `depth` is not from 0 to 1
 */
export function makeNeedle({ task, text, tokenizer, tokens, depth, seed }: NeedleOptions): NeedleProblem {
  if (!(depth >= 0 && depth <= 1)) throw new ArgumentError("depth", depth, "a number from 0 to 1");
  const random = new Random(seed);
  const key = `${KEYS[random.integer(KEYS.length)]}-${KEYS[random.integer(KEYS.length)]}`;
  const kind = task === "s-niah-3" ? "uuid" : "number";
  const answer =
    kind === "number"
      ? String(1_000_000 + random.integer(9_000_000))
      : [8, 4, 4, 4, 12].map((digits) => hex(random, digits)).join("-");
  const needle = `One of the special magic ${kind}s for ${key} is: ${answer}. `;
  const before = `A special magic ${kind} is hidden within the following text. Make sure to memorize it. I will quiz you about the ${kind} afterwards.\n`;
  const after = `\nWhat is the special magic ${kind} for ${key} mentioned in the provided text? The special magic ${kind} for ${key} mentioned in the provided text is`;
  const promptOf = (sentences: readonly string[]): string => {
    const at = Math.round(depth * sentences.length);
    return before + sentences.slice(0, at).join("") + needle + sentences.slice(at).join("") + after;
  };
  const room = tokens - tokenizer.encode(promptOf([])).length;
  if (room < 0)
    throw new ArgumentError("tokens", tokens, `at least ${tokens - room}, for the question alone`);
  const sentences = takeSentences(task === "s-niah-1" ? NOISE : text, tokenizer, room);
  while (sentences.length > 0 && tokenizer.encode(promptOf(sentences)).length > tokens) sentences.pop();
  return { prompt: promptOf(sentences), answer, needle };
}

/** Sentences of a text, again and again, as long as they have `room` tokens together. */
function takeSentences(text: string, tokenizer: Tokenizer, room: number): string[] {
  const source = text.match(/[^.!?]+(?:[.!?]+\s*|$)/g) ?? [];
  if (source.length === 0) throw new ArgumentError("text", text, "a text with words in it");
  const taken: string[] = [];
  let used = 0;
  while (true) {
    const sentence = source[taken.length % source.length];
    used += tokenizer.encode(sentence).length;
    if (used > room) return taken;
    taken.push(sentence);
  }
}

/** What {@link sweepNeedles} tries. */
export interface NeedleSweepOptions {
  readonly task: NeedleTask;
  readonly text: string;
  readonly tokenizer: Tokenizer;
  /** Prompt lengths, in tokens. */
  readonly lengths: readonly number[];
  /** Depths, from 0 to 1. */
  readonly depths: readonly number[];
  /** Problems for each length and depth. Default 1. */
  readonly samples?: number;
  /** Default 0. */
  readonly seed?: number;
}

/** The result for one length and depth. */
export interface NeedleCell {
  readonly task: NeedleTask;
  readonly length: number;
  readonly depth: number;
  readonly samples: number;
  /** Problems whose continuation contains the answer. */
  readonly correct: number;
}

/** Asks a model for needles at every length and depth; answers are greedy and as long as the right one. Yields each cell when done. */
export async function* sweepNeedles(
  model: Transformer,
  options: NeedleSweepOptions,
): AsyncGenerator<NeedleCell, void, void> {
  const { task, tokenizer, lengths, depths, samples = 1, seed = 0 } = options;
  checkPositiveInteger("samples", samples);
  for (const length of lengths) {
    for (const depth of depths) {
      const problems = Array.from({ length: samples }, (_, i) =>
        makeNeedle({ ...options, tokens: length, depth, seed: seed + i }),
      );
      const answers = problems.map(() => "");
      const longest = Math.max(...problems.map(({ answer }) => tokenizer.encode(` ${answer}`).length));
      const prompts = problems.map(({ prompt }) => prompt);
      for await (const { prompt, text } of generate(model, tokenizer, prompts, { maxTokens: longest })) {
        answers[prompt] += text;
      }
      const correct = problems.filter(({ answer }, i) => answers[i].includes(answer)).length;
      yield { task, length, depth, samples, correct };
    }
  }
}

import { type Generator, integer } from "./random.js";

/** Made-up words in the middle of a text. */
export interface Needle {
  readonly words: readonly string[];
  /** Index of its first word in the haystack. */
  readonly position: number;
}

/** A text with needles in it. */
export interface Haystack {
  /** All words in order, needles included. */
  readonly words: readonly string[];
  readonly needles: readonly Needle[];
}

/** What a haystack is made of. */
export interface HaystackOptions {
  /** Its length in words, needles included. */
  readonly tokens: number;
  /** `B`: each needle lies whole inside one block. */
  readonly blockSize: number;
  /** How many needles. */
  readonly needles: number;
  /** `m`, words of a needle; at most `B`. */
  readonly needleWords: number;
}

/**
 * Random places for needles, uniform among those where each lies whole inside one block (one that straddled two would
 * split its signal) and none overlaps another.
 */
export function placeNeedles(
  { tokens, blockSize, needles, needleWords }: HaystackOptions,
  random: Generator,
): number[] {
  const taken = new Uint8Array(tokens);
  const positions: number[] = [];
  while (positions.length < needles) {
    const first = integer(random, tokens - needleWords + 1);
    const last = first + needleWords - 1;
    const straddles = Math.floor(first / blockSize) !== Math.floor(last / blockSize);
    if (straddles || taken.subarray(first, last + 1).includes(1)) continue;
    taken.fill(1, first, last + 1);
    positions.push(first);
  }
  return positions;
}

const CONSONANTS = "bdfgklmnprstvz";
const VOWELS = "aeiou";

/** A word of three syllables that is not yet known; it is then. */
function inventWord(known: Set<string>, random: Generator): string {
  for (;;) {
    let word = "";
    for (let syllable = 0; syllable < 3; syllable++) {
      word += CONSONANTS[integer(random, CONSONANTS.length)] + VOWELS[integer(random, VOWELS.length)];
    }
    if (known.has(word)) continue;
    known.add(word);
    return word;
  }
}

/** A haystack: the text's words from its beginning, pushed apart by needles of made-up words that it does not hold. */
export function buildHaystack(
  text: readonly string[],
  options: HaystackOptions,
  random: Generator,
): Haystack {
  const known = new Set(text);
  const needles = placeNeedles(options, random).map((position) => ({
    position,
    words: Array.from({ length: options.needleWords }, () => inventWord(known, random)),
  }));
  const words = new Array<string>(options.tokens);
  for (const needle of needles) {
    needle.words.forEach((word, i) => {
      words[needle.position + i] = word;
    });
  }
  let next = 0;
  for (let i = 0; i < words.length; i++) words[i] ??= text[next++];
  return { words, needles };
}

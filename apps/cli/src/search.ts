import { ArgumentError, type Backend, blockCount } from "@moba-js/tensor";
import { type Directions, dot } from "./directions.js";
import { type Text, tokenize } from "./text.js";

/**
 * Factor of the scores: a word that makes up most of the query (a product near 1) gets thousands of times the weight of a
 * word that has nothing to do with it (products around 0 ± 1/√d), and a lesser word of the phrase still counts.
 */
const SCALE = 8;

/** A run of chosen blocks, and what it got. */
export interface Passage {
  /** Its tokens in the text, `first … last`. */
  readonly first: number;
  readonly last: number;
  /** The token that got the most attention. */
  readonly peak: number;
  /** Its share of the attention. */
  readonly weight: number;
}

/** What {@link search} found. */
export interface SearchResult {
  /** Words of the phrase that the text holds, and those that it does not. */
  readonly known: readonly string[];
  readonly unknown: readonly string[];
  /** `n`. */
  readonly blocks: number;
  /** How many of them were chosen, `min(k, n)`. */
  readonly chosen: number;
  /** From the heaviest to the lightest. */
  readonly passages: readonly Passage[];
}

/** Options of {@link search}. */
export interface SearchOptions {
  /** `B`. */
  readonly blockSize: number;
  /** `k`. */
  readonly topK: number;
}

/** The inverse document frequency of every word, blocks being the documents: `ln(1 + n/n_w)`. */
function inverseDocumentFrequencies(words: readonly string[], blockSize: number): Map<string, number> {
  const blocks = blockCount(words.length, blockSize);
  const blocksWith = new Map<string, number>();
  for (let block = 0; block < blocks; block++) {
    for (const word of new Set(words.slice(block * blockSize, (block + 1) * blockSize))) {
      blocksWith.set(word, (blocksWith.get(word) ?? 0) + 1);
    }
  }
  return new Map([...blocksWith].map(([word, count]) => [word, Math.log(1 + blocks / count)]));
}

/** Runs of neighbouring blocks, as `[first, last]`. */
function runs(blocks: readonly number[]): [number, number][] {
  const result: [number, number][] = [];
  for (const block of blocks.toSorted((a, b) => a - b)) {
    const run = result[result.length - 1];
    if (run !== undefined && run[1] === block - 1) run[1] = block;
    else result.push([block, block]);
  }
  return result;
}

/**
 * Finds a phrase in a text by block routing. Keys are the directions of the text's words; the query is the normalized sum of
 * those of the phrase, weighted by inverse document frequency. It chooses `k` blocks, attends them, and their passages are
 * ranked by the attention they get.
 * @throws ArgumentError when the text holds no word of the phrase.
 */
export async function search(
  backend: Backend,
  text: Text,
  phrase: string,
  directions: Directions,
  { blockSize, topK }: SearchOptions,
): Promise<SearchResult> {
  const words = text.tokens.map(({ word }) => word);
  const frequencies = inverseDocumentFrequencies(words, blockSize);
  const wanted = [...new Set(tokenize(phrase).map(({ word }) => word))];
  const known = wanted.filter((word) => frequencies.has(word));
  if (known.length === 0) throw new ArgumentError("phrase", phrase, `a word that ${text.name} holds`);

  const { headDim } = directions;
  const query = directions.sum(known, (word) => frequencies.get(word) ?? 0);
  using q = backend.tensor(query, [1, 1, headDim]);
  using k = backend.tensor(directions.rows(words), [words.length, 1, headDim]);
  using routing = backend.route(q, k, { blockSize, topK, causal: false });
  const attended = backend.attend(q, k, k, routing, { scale: SCALE });
  using _out = attended.out;
  using logSumExp = attended.lse;
  const chosen = [...(await routing.indices.data())];
  const [lse] = await logSumExp.data();

  const passages = runs(chosen).map(([firstBlock, lastBlock]): Passage => {
    const first = firstBlock * blockSize;
    const last = Math.min((lastBlock + 1) * blockSize, words.length) - 1;
    const weights = Array.from({ length: last - first + 1 }, (_, i) =>
      Math.exp(SCALE * dot(query, directions.of(words[first + i])) - lse),
    );
    const peak = first + weights.indexOf(Math.max(...weights));
    return { first, last, peak, weight: weights.reduce((total, weight) => total + weight) };
  });
  return {
    known,
    unknown: wanted.filter((word) => !frequencies.has(word)),
    blocks: blockCount(words.length, blockSize),
    chosen: chosen.length,
    passages: passages.toSorted((a, b) => b.weight - a.weight),
  };
}

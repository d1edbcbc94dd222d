import { Random } from "@moba-js/snr";
import { type CuSeqlens, checkPositiveInteger, cuSeqlensFromLengths, FormatError } from "@moba-js/tensor";
import type { Tokenizer } from "./tokenizer.js";

/** Where documents come from: an ordered list that is read in pieces, as often as wanted. */
export interface DocumentSource {
  /** What it is, for messages. */
  readonly name: string;
  /** The documents from number `from` on, in order. */
  documents(from: number): AsyncIterable<string>;
}

/** Documents that are in memory. */
export const memorySource = (name: string, documents: readonly string[]): DocumentSource => ({
  name,
  async *documents(from) {
    yield* documents.slice(from);
  },
});

/** Tokens of one step, packed: pieces of documents one after the other. */
export interface PackedTokens {
  /** `[T]` */
  readonly tokens: Int32Array;
  /** The token after each, `[T]`. */
  readonly targets: Int32Array;
  /** Where each piece begins. */
  readonly cuSeqlens: CuSeqlens;
}

/** A place in an endless reading of the documents: with the same options, reading goes on from there exactly. */
export interface DataPosition {
  /** Times that all documents were read before. */
  readonly epoch: number;
  /** Documents that were read before in this epoch. */
  readonly document: number;
  /** Tokens of the next document that were read before. */
  readonly token: number;
}

/** How documents are read and packed. */
export interface PackingOptions {
  readonly source: DocumentSource;
  readonly tokenizer: Tokenizer;
  /** `T`, tokens of a batch. */
  readonly batchTokens: number;
  /** The most tokens of one piece; longer documents are cut. */
  readonly sequenceTokens: number;
  /** Seed of the order. */
  readonly seed: number;
  /** Documents whose order is shuffled together, in memory at once. Default 1024. */
  readonly shuffleDocuments?: number;
}

/** The first document of the first epoch. */
export const START: DataPosition = { epoch: 0, document: 0, token: 0 };

/** The numbers from 0 to `count − 1` in random order (Fisher and Yates). */
function permutation(count: number, random: Random): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = random.integer(i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** The documents of one epoch from a place on, shuffled in groups; the order depends on seed and epoch only. */
async function* shuffledDocuments(
  { source, seed, shuffleDocuments = 1024 }: PackingOptions,
  { epoch, document }: DataPosition,
): AsyncIterable<string> {
  const firstGroup = Math.floor(document / shuffleDocuments);
  let skip = document - firstGroup * shuffleDocuments;
  let number = firstGroup;
  let group: string[] = [];
  function* shuffled(): Iterable<string> {
    // Different seeds, epochs and groups have different orders.
    const mixed =
      Math.imul(seed, 0x9e3779b1) ^ Math.imul(epoch + 1, 0x85ebca6b) ^ Math.imul(number, 0xc2b2ae35);
    for (const i of permutation(group.length, new Random(mixed >>> 0)).subarray(skip)) yield group[i];
    skip = 0;
    number += 1;
    group = [];
  }
  for await (const text of source.documents(firstGroup * shuffleDocuments)) {
    group.push(text);
    if (group.length === shuffleDocuments) yield* shuffled();
  }
  yield* shuffled();
}

/**
 * Batches without end: the documents again and again, each epoch in another order. A document is read as `end, tokens…` with
 * targets `tokens…, end`, cut where a batch or the longest piece ends; pieces do not see each other.
 * @param from where to begin: {@link START}, or the `next` of a batch before
 * @returns each batch with the place after it
 * @throws FormatError when the source has no documents
 */
export async function* packedBatches(
  options: PackingOptions,
  from: DataPosition = START,
): AsyncGenerator<{ batch: PackedTokens; next: DataPosition }, never, void> {
  const { source, tokenizer, batchTokens, sequenceTokens } = options;
  checkPositiveInteger("batchTokens", batchTokens);
  checkPositiveInteger("sequenceTokens", sequenceTokens);
  checkPositiveInteger("shuffleDocuments", options.shuffleDocuments ?? 1024);
  let tokens = new Int32Array(batchTokens);
  let targets = new Int32Array(batchTokens);
  let lengths: number[] = [];
  let used = 0;
  let position = from;
  while (true) {
    for await (const text of shuffledDocuments(options, position)) {
      const encoded = tokenizer.encode(text);
      const document = new Int32Array(encoded.length + 2).fill(tokenizer.end);
      document.set(encoded, 1);
      const last = document.length - 1;
      while (position.token < last) {
        const { token } = position;
        const count = Math.min(last - token, batchTokens - used, sequenceTokens);
        tokens.set(document.subarray(token, token + count), used);
        targets.set(document.subarray(token + 1, token + count + 1), used);
        lengths.push(count);
        used += count;
        position = { ...position, token: token + count };
        if (used < batchTokens) continue;
        const atEnd = position.token === last;
        const next = atEnd ? { ...position, document: position.document + 1, token: 0 } : position;
        yield { batch: { tokens, targets, cuSeqlens: cuSeqlensFromLengths(lengths) }, next };
        [tokens, targets, lengths, used] = [new Int32Array(batchTokens), new Int32Array(batchTokens), [], 0];
      }
      position = { ...position, document: position.document + 1, token: 0 };
    }
    if (position.document === 0) throw new FormatError(source.name, "no documents");
    position = { epoch: position.epoch + 1, document: 0, token: 0 };
  }
}

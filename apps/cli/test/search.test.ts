import { ReferenceBackend } from "@moba-js/reference";
import { ArgumentError, leakCheck } from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import { Directions } from "../src/directions.js";
import { search } from "../src/search.js";
import { mobyDick, tokenize } from "../src/text.js";
import { freshSeed } from "./support.js";

const backend = new ReferenceBackend();
const seed = freshSeed();

const textOf = (text: string) => ({
  name: "text",
  sections: [{ title: "text", text }],
  tokens: tokenize(text),
});

describe("search", () => {
  it("puts the passage of a phrase of the book among the first", async () => {
    const book = mobyDick();
    const phrase = "the great shroud of the sea";
    const words = tokenize(phrase).map(({ word }) => word);
    const at = book.tokens.findIndex((_, i) => words.every((word, j) => book.tokens[i + j]?.word === word));
    const directions = new Directions(seed, 128);
    const { passages, blocks, chosen } = await search(backend, book, phrase, directions, {
      blockSize: 8,
      topK: 32,
    });
    expect(blocks).toBe(Math.ceil(book.tokens.length / 8));
    expect(chosen).toBe(32);
    const found = passages.findIndex(({ first, last }) => last >= at && first < at + words.length);
    expect(found).toBeGreaterThanOrEqual(0);
    expect(found).toBeLessThan(5);
  });

  it("ranks runs of chosen blocks by their attention, which sums to 1", async () => {
    const filler = Array.from({ length: 600 }, (_, i) => `w${i % 150}`);
    const text = textOf(
      [...filler.slice(0, 300), "needle", "needle", ...filler.slice(300), "needle"].join(" "),
    );
    const { passages, known, unknown } = await leakCheck(backend, () =>
      search(backend, text, "needle pin", new Directions(seed, 128), { blockSize: 7, topK: 12 }),
    );
    expect({ known, unknown }).toEqual({ known: ["needle"], unknown: ["pin"] });
    expect(passages.reduce((sum, { weight }) => sum + weight, 0)).toBeCloseTo(1, 4);
    const weights = passages.map(({ weight }) => weight);
    expect(weights).toEqual(weights.toSorted((a, b) => b - a));
    expect(passages.slice(0, 2).map(({ peak }) => text.tokens[peak].word)).toEqual(["needle", "needle"]);
    const taken = passages.map(({ first, last }) => [first, last]).toSorted(([a], [b]) => a - b);
    for (let i = 1; i < taken.length; i++) expect(taken[i][0]).toBeGreaterThan(taken[i - 1][1] + 1);
  });

  it("attends everything when there are fewer blocks than wanted", async () => {
    const options = { blockSize: 4, topK: 100 };
    const found = await search(
      backend,
      textOf("one two three four five"),
      "five",
      new Directions(seed, 64),
      options,
    );
    expect(found).toMatchObject({ blocks: 2, chosen: 2, passages: [{ first: 0, last: 4, peak: 4 }] });
  });

  it("refuses a phrase without a word of the text, by name", async () => {
    const failed = search(backend, textOf("call me ishmael"), "xyzzy", new Directions(seed, 16), {
      blockSize: 4,
      topK: 1,
    });
    const error = await failed.catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(ArgumentError);
    expect((error as ArgumentError).message).toContain('"xyzzy"');
  });
});

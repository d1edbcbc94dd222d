import fc from "fast-check";
import { expect, it } from "vitest";
import { buildHaystack, type HaystackOptions, placeNeedles } from "../src/haystack.js";
import { generator } from "../src/random.js";

/** Haystacks in which at most a quarter of the words belong to needles. */
const options: fc.Arbitrary<HaystackOptions> = fc
  .record({
    blockSize: fc.integer({ min: 1, max: 70 }),
    share: fc.double({ min: 0, max: 1, noNaN: true }),
    needles: fc.integer({ min: 0, max: 40 }),
    spare: fc.integer({ min: 0, max: 500 }),
  })
  .map(({ blockSize, share, needles, spare }) => {
    const needleWords = Math.max(1, Math.floor(share * Math.min(blockSize, 16)));
    const room = Math.ceil((4 * needles * blockSize) / Math.floor(blockSize / needleWords));
    return { tokens: room + spare + needleWords, blockSize, needles, needleWords };
  });

it("places every needle whole inside one block, none over another", () => {
  fc.assert(
    fc.property(options, fc.integer(), (shape, seed) => {
      const { tokens, blockSize, needles, needleWords } = shape;
      const positions = placeNeedles(shape, generator("test", seed));
      expect(positions).toHaveLength(needles);
      const taken = positions.flatMap((first) => Array.from({ length: needleWords }, (_, i) => first + i));
      expect(new Set(taken).size).toBe(needles * needleWords);
      for (const first of positions) {
        expect(first).toBeGreaterThanOrEqual(0);
        expect(first + needleWords).toBeLessThanOrEqual(tokens);
        expect(Math.floor((first + needleWords - 1) / blockSize)).toBe(Math.floor(first / blockSize));
      }
    }),
  );
});

it("keeps the text's words in order around needles of fresh made-up words", () => {
  fc.assert(
    fc.property(options, fc.integer(), (shape, seed) => {
      const text = Array.from({ length: shape.tokens }, (_, i) => ["bada", "gufo", `w${i}`][i % 3]);
      const { words, needles } = buildHaystack(text, shape, generator("test", seed));
      expect(words).toHaveLength(shape.tokens);
      const made = needles.flatMap((needle) => needle.words);
      expect(new Set(made).size).toBe(made.length);
      const own = new Set(text);
      expect(made.some((word) => own.has(word))).toBe(false);
      for (const { words: needle, position } of needles) {
        expect(words.slice(position, position + needle.length)).toEqual(needle);
      }
      const rest = words.filter((word) => own.has(word));
      expect(rest).toEqual(text.slice(0, rest.length));
    }),
  );
});

it("is the same for the same generator, and spreads needles over all depths", () => {
  const shape = { tokens: 16384, blockSize: 32, needles: 400, needleWords: 4 };
  const positions = placeNeedles(shape, generator("depth", 1));
  expect(placeNeedles(shape, generator("depth", 1))).toEqual(positions);
  const quarters = [0, 1, 2, 3].map((q) => positions.filter((at) => Math.floor(at / 4096) === q).length);
  for (const count of quarters) expect(Math.abs(count - 100)).toBeLessThan(45); // 5 standard deviations
});

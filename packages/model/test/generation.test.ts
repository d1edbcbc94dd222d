import { ReferenceBackend } from "@moba-js/reference";
import { Random } from "@moba-js/snr";
import { ArgumentError, cuSeqlensFromLengths, leakCheck } from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import {
  ByteTokenizer,
  type FinishReason,
  type GenerateOptions,
  generate,
  KvCache,
  PRESETS,
  sampleToken,
  Tape,
  type Tokenizer,
  type Transformer,
  Variable,
} from "../src/index.js";
import { chainModel, KINDS, miniature, randomModel } from "./models.js";
import { freshSeed, TestRandom } from "./random.js";

const seed = freshSeed();
console.log(`generation: seed ${seed}`);

/** Logits of every token of packed sequences, `[T][V]`. */
async function fullLogits(model: Transformer, sequences: Int32Array[]): Promise<Float64Array> {
  const cuSeqlens = cuSeqlensFromLengths(sequences.map(({ length }) => length));
  const tokens = Int32Array.from(sequences.flatMap((sequence) => [...sequence]));
  using logits = model.backend.scope(() => {
    const tape = new Tape(model.backend, { record: false });
    return model.logits(tape, model.hidden(tape, model.packedBatch(tokens, cuSeqlens))).value;
  });
  return logits.values();
}

/** The worst `‖x − ref‖ / ‖ref‖` of any row. */
function worstRow(x: Float64Array, ref: Float64Array, columns: number): number {
  let worst = 0;
  for (let row = 0; row < ref.length; row += columns) {
    let difference = 0;
    let norm = 0;
    for (let c = row; c < row + columns; c++) {
      difference += (x[c] - ref[c]) ** 2;
      norm += ref[c] ** 2;
    }
    worst = Math.max(worst, Math.sqrt(difference / norm));
  }
  return worst;
}

/** Logits of every token, with the cache fed by pieces of `piece()` tokens for each sequence. */
async function cachedLogits(
  model: Transformer,
  sequences: Int32Array[],
  piece: () => number,
): Promise<Float64Array> {
  const { backend } = model;
  const { vocabulary } = model.config;
  const longest = Math.max(...sequences.map(({ length }) => length));
  using cache = new KvCache(model, { batch: sequences.length, capacity: longest });
  const rows: Float64Array[][] = sequences.map(() => []);
  while (cache.lengths.some((length, s) => length < sequences[s].length)) {
    const pieces = sequences.map((tokens, s) =>
      tokens.subarray(cache.lengths[s], cache.lengths[s] + piece()),
    );
    using logits = backend.scope(() => {
      const hidden = new Variable(cache.extend(pieces));
      return model.logits(new Tape(backend, { record: false }), hidden).value;
    });
    const values = await logits.values();
    let row = 0;
    pieces.forEach(({ length }, s) => {
      for (let i = 0; i < length; i++, row++)
        rows[s].push(values.slice(row * vocabulary, (row + 1) * vocabulary));
    });
  }
  return Float64Array.from(rows.flat().flatMap((row) => [...row]));
}

const WIDTHS = [0, 3, 5].map(
  (convWidth) => [`moba, W = ${convWidth}`, { kind: "moba", blockSize: 4, topK: 3, convWidth }] as const,
);

describe.each([["dense", KINDS.dense] as const, ...WIDTHS])("decoding with %s", (_, attention) => {
  it("equals the full forward at every position to 1e-5, token by token and by pieces of any size", async () => {
    const random = new TestRandom(seed);
    let worst = 0;
    for (let round = 0; round < 6; round++) {
      const model = randomModel(new ReferenceBackend(), miniature(attention), random);
      const sequences = Array.from({ length: random.int(1, 3) }, () => random.tokens(random.int(1, 60), 11));
      const reference = await fullLogits(model, sequences);
      for (const piece of [() => 1, () => random.int(0, 17), () => 7, () => 1000]) {
        const cached = await cachedLogits(model, sequences, piece);
        expect(cached.length).toBe(reference.length);
        worst = Math.max(worst, worstRow(cached, reference, 11));
      }
    }
    console.log(`worst relative error: ${worst.toExponential(1)}`);
    expect(worst).toBeLessThan(1e-5);
  });
});

it("decoding the tiny preset equals its full forward to 1e-5", async () => {
  const random = new TestRandom(seed + 1);
  const model = randomModel(new ReferenceBackend(), PRESETS.tiny, random);
  const sequences = [random.tokens(300, 257), random.tokens(131, 257)];
  const cached = await cachedLogits(model, sequences, () => random.pick([1, 1, 2, 50]));
  expect(worstRow(cached, await fullLogits(model, sequences), 257)).toBeLessThan(1e-5);
});

it("a cache refuses more tokens than it has room for, and leaks nothing", async () => {
  const model = randomModel(new ReferenceBackend(), miniature(KINDS.moba), new TestRandom(seed));
  await leakCheck(model.backend, () => {
    using cache = new KvCache(model, { batch: 2, capacity: 10 });
    cache.extend([[1, 2, 3], []]).dispose();
    expect(cache.lengths).toEqual([3, 0]);
    expect(() => cache.extend([new Int32Array(10), []])).toThrow(ArgumentError);
    expect(() => cache.extend([[1]])).toThrow(ArgumentError);
    expect(cache.lengths).toEqual([3, 0]);
  });
});

describe("sampling", () => {
  const logits = Float64Array.of(0, 2, 1, 2);

  it("takes the likeliest token at temperature 0, the lower of equals", () => {
    expect(sampleToken(logits, {}, new Random(seed))).toBe(1);
  });

  it("follows the softmax, and only the nucleus with topP", () => {
    const random = new Random(seed);
    const draws = 20_000;
    const shares = (options: object) => {
      const counts = [0, 0, 0, 0];
      for (let i = 0; i < draws; i++) counts[sampleToken(logits, options, random)] += 1 / draws;
      return counts;
    };
    const weights = [...logits].map((x) => Math.exp(x / 0.7));
    const total = weights.reduce((a, b) => a + b);
    shares({ temperature: 0.7 }).forEach((share, token) => {
      const p = weights[token] / total;
      expect(Math.abs(share - p)).toBeLessThan(5 * Math.sqrt((p * (1 - p)) / draws));
    });
    // Two tokens of probability 0.40 each are the fewest that sum to 0.5.
    const [a, b, c, d] = shares({ temperature: 1, topP: 0.5 });
    expect([a, c]).toEqual([0, 0]);
    expect(Math.abs(b - d)).toBeLessThan(0.05);
  });
});

describe("generation", () => {
  const tokenizer = new ByteTokenizer();
  const model = randomModel(
    new ReferenceBackend(),
    { ...miniature(KINDS["moba, W = 3"]), vocabulary: 257 },
    new TestRandom(seed + 3),
  );
  const collect = async (prompts: string[], options: GenerateOptions, other: Tokenizer = tokenizer) => {
    const texts = prompts.map(() => "");
    const reasons: (FinishReason | undefined)[] = prompts.map(() => undefined);
    for await (const { prompt, text, finished } of generate(model, other, prompts, options)) {
      expect(reasons[prompt]).toBeUndefined();
      texts[prompt] += text;
      reasons[prompt] = finished;
    }
    return { texts, reasons };
  };

  it("is greedy decoding by full forwards, whatever the batch and the chunks", async () => {
    const prompts = ["", "a", "Call me Ishmael. Some years ago", "öß"];
    const { texts } = await leakCheck(model.backend, () =>
      collect(prompts, { maxTokens: 12, prefillTokens: 5 }),
    );
    for (const [i, prompt] of prompts.entries()) {
      const tokens = [256, ...tokenizer.encode(prompt)];
      const begin = tokens.length;
      while (tokens.length < begin + 12 && tokens[tokens.length - 1] !== (tokens.length > begin ? 256 : -1)) {
        const logits = (await fullLogits(model, [Int32Array.from(tokens)])).slice(-257);
        tokens.push(sampleToken(logits, {}, new Random(0)));
      }
      expect(texts[i]).toBe(tokenizer.decode(tokens.slice(begin)));
    }
  });

  it("repeats with the same seed and ends at maxTokens", async () => {
    // Hot, since the logits of a random model may be far apart.
    const options = { maxTokens: 20, temperature: 100, topP: 0.9, seed: 5 };
    const first = await collect(["x", "yz"], options);
    expect(await collect(["x", "yz"], options)).toEqual(first);
    expect((await collect(["x", "yz"], { ...options, seed: 6 })).texts).not.toEqual(first.texts);
    expect(first.reasons.every((reason) => reason === "length" || reason === "end")).toBe(true);
  });

  it("stops before a stop text, even one that comes in pieces", async () => {
    const alphabet = "abcdefghijklmnopqrstuvwxyz";
    const speaker = chainModel(new ReferenceBackend(), 257, [256, ...tokenizer.encode(alphabet)]);
    const pieces: string[] = [];
    const options = { maxTokens: 26, stop: ["jkl!", "klm"] };
    for await (const { text, finished } of generate(speaker, tokenizer, [""], options)) {
      pieces.push(finished ? `${text}(${finished})` : text);
    }
    expect(pieces.join("")).toBe("abcdefghij(stop)");
  });

  it("gives characters out whole", async () => {
    const text = "é漢🐋"; // nine bytes, all different
    const speaker = chainModel(new ReferenceBackend(), 257, [256, ...tokenizer.encode(text)]);
    const pieces: string[] = [];
    for await (const piece of generate(speaker, tokenizer, [""], { maxTokens: 9 })) pieces.push(piece.text);
    expect(pieces).toEqual([...text]);
    // Cut in the middle of a character, the rest of it is given out as it is.
    const cut: string[] = [];
    for await (const piece of generate(speaker, tokenizer, [""], { maxTokens: 3 })) cut.push(piece.text);
    expect(cut).toEqual(["é", "\ufffd"]);
  });

  it.each([
    { maxTokens: 0 },
    { maxTokens: 3, temperature: -1 },
    { maxTokens: 3, topP: 0 },
    { maxTokens: 3, prefillTokens: 0.5 },
    { maxTokens: 3, stop: [""] },
  ])("refuses %o", async (options) => {
    await expect(collect(["x"], options)).rejects.toThrow(ArgumentError);
  });

  it("of no prompts is empty, and a tokenizer must fit the model", async () => {
    expect((await collect([], { maxTokens: 1 })).texts).toEqual([]);
    const large = Object.assign(new ByteTokenizer(), { vocabulary: 300 });
    await expect(collect(["x"], { maxTokens: 1 }, large)).rejects.toThrow(ArgumentError);
  });
});

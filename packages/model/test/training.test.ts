import { ReferenceBackend } from "@moba-js/reference";
import { ArgumentError, leakCheck, type Tensor } from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import {
  ByteTokenizer,
  type DataPosition,
  learningRateAt,
  lossPage,
  memorySource,
  type PackedTokens,
  PRESETS,
  packedBatches,
  Trainer,
  Transformer,
} from "../src/index.js";
import { KINDS, miniature, randomModel } from "./models.js";
import { freshSeed, TestRandom } from "./random.js";

const seed = freshSeed();
console.log(`training: seed ${seed}`);

const weightsOf = async (model: Transformer) =>
  Object.fromEntries(
    await Promise.all(
      [...model.parameters].map(async ([name, { value }]) => [name, await value.data()] as const),
    ),
  );

function randomBatch(random: TestRandom, vocabulary: number, lengths: number[]): PackedTokens {
  const cuSeqlens = Int32Array.from([
    0,
    ...lengths.map((_, i) => lengths.slice(0, i + 1).reduce((a, b) => a + b)),
  ]);
  const tokens = random.tokens(cuSeqlens[lengths.length], vocabulary);
  const targets = random.tokens(tokens.length, vocabulary).map((y, i) => (i % 7 === 3 ? -1 : y));
  return { tokens, targets, cuSeqlens };
}

describe("the learning rate", () => {
  it("rises linearly, then falls along a cosine", () => {
    const options = { steps: 110, learningRate: 2, warmupSteps: 10, finalShare: 0.1 };
    expect(learningRateAt(1, options)).toBeCloseTo(0.2);
    expect(learningRateAt(10, options)).toBe(2);
    expect(learningRateAt(60, options)).toBeCloseTo(2 * 0.55); // half way: the mean of 1 and 0.1
    expect(learningRateAt(110, options)).toBeCloseTo(0.2);
    expect(learningRateAt(200, options)).toBeCloseTo(0.2);
  });
});

describe("a step", () => {
  const options = { steps: 10, learningRate: 0.01, weightDecay: 0.1, clipNorm: 1e9 };
  const make = (random: TestRandom, change = {}) =>
    new Trainer(randomModel(new ReferenceBackend(), miniature(KINDS["moba, W = 3"]), random), {
      ...options,
      ...change,
    });

  it("over two batches is a step over their tokens together", async () => {
    const [first, second] = [make(new TestRandom(seed)), make(new TestRandom(seed))];
    const random = new TestRandom(seed + 1);
    const [a, b] = [randomBatch(random, 11, [9, 14]), randomBatch(random, 11, [20])];
    const joined = {
      tokens: Int32Array.of(...a.tokens, ...b.tokens),
      targets: Int32Array.of(...a.targets, ...b.targets),
      cuSeqlens: Int32Array.of(0, 9, 23, 43),
    };
    const [apart, together] = [await first.train([a, b]), await second.train([joined])];
    expect(apart.tokens).toBe(together.tokens);
    expect(apart.loss).toBeCloseTo(together.loss, 5);
    expect(apart.gradientNorm / together.gradientNorm).toBeCloseTo(1, 5);
    for (const [name, { m }] of first.moments) {
      const [x, y] = [await m.values(), await (second.moments.get(name) as { m: typeof m }).m.values()];
      const scale = Math.max(...y.map(Math.abs));
      for (const [i, value] of x.entries()) expect(Math.abs(value - y[i]) / scale, name).toBeLessThan(1e-4);
    }
  });

  it("scales a gradient that is too long down to the limit", async () => {
    const random = new TestRandom(seed + 2);
    const batch = randomBatch(random, 11, [20]);
    const trainer = make(random, { clipNorm: 0.25 });
    const { gradientNorm } = await trainer.train([batch]);
    expect(gradientNorm).toBeGreaterThan(0.25);
    // After the first step m = (1 − β₁) g.
    let squares = 0;
    for (const { m } of trainer.moments.values()) for (const x of await m.values()) squares += x * x;
    expect(Math.sqrt(squares)).toBeCloseTo(0.1 * 0.25, 5);
  });

  it("decays matrices, not norms or convolutions", async () => {
    const random = new TestRandom(seed + 3);
    const batch = { ...randomBatch(random, 11, [20]), targets: new Int32Array(20).fill(-1) }; // no gradient
    const trainer = make(random);
    const before = await weightsOf(trainer.model);
    await trainer.train([batch]);
    const after = await weightsOf(trainer.model);
    for (const [name, values] of Object.entries(after)) {
      const factor = /norm|conv/.test(name) ? 1 : 1 - learningRateAt(1, options) * 0.1;
      expect(values[3] / before[name][3], name).toBeCloseTo(factor, 6);
    }
  });

  it("that would not be finite changes nothing", async () => {
    const random = new TestRandom(seed + 4);
    const trainer = make(random);
    const { backend, parameters } = trainer.model;
    const weight = parameters.get("layers.1.mlp.up.weight")?.value as Tensor;
    backend.write(weight, new Float32Array(96).fill(Number.NaN));
    const before = await weightsOf(trainer.model);
    await expect(trainer.train([randomBatch(random, 11, [20])])).rejects.toThrow(ArgumentError);
    expect(await weightsOf(trainer.model)).toEqual(before);
    expect(trainer.step).toBe(0);
  });

  it("after one that failed changes nothing either, unless it is asked for when that is known", async () => {
    const random = new TestRandom(seed + 7);
    const trainer = make(random);
    const weight = trainer.model.parameters.get("norm.weight")?.value as Tensor;
    const [batch, good] = [randomBatch(random, 11, [20]), await weight.data()];
    trainer.model.backend.write(
      weight,
      good.map(() => Number.POSITIVE_INFINITY),
    );
    const first = trainer.train([batch]);
    trainer.model.backend.write(weight, good);
    const second = trainer.train([batch]);
    const before = await weightsOf(trainer.model);
    await expect(first).rejects.toThrow(ArgumentError);
    await expect(second).rejects.toThrow(ArgumentError);
    expect(await weightsOf(trainer.model)).toEqual(before);
    expect(trainer.step).toBe(0);
    expect((await trainer.train([batch])).step).toBe(1);
    expect(await weightsOf(trainer.model)).not.toEqual(before);
  });

  it("leaves no tensor behind, and needs less memory with recomputation", async () => {
    const random = new TestRandom(seed + 5);
    const peaks = new Map<boolean, number>();
    const batch = randomBatch(random, 257, [300, 212]);
    for (const recompute of [false, true]) {
      const backend = new ReferenceBackend();
      const trainer = new Trainer(Transformer.initialize(backend, PRESETS.tiny, { seed }), {
        ...options,
        recompute,
      });
      await leakCheck(backend, async () => {
        await trainer.train([batch]);
      });
      peaks.set(recompute, backend.memory().peakBytes);
    }
    const [plain, recomputed] = [peaks.get(false) as number, peaks.get(true) as number];
    console.log(`peak of a step of 512 tokens: ${plain} bytes, with recomputation ${recomputed}`);
    expect(recomputed).toBeLessThan(0.6 * plain);
  });
});

describe("packing", () => {
  const tokenizer = new ByteTokenizer();
  const random = new TestRandom(seed + 6);
  const texts = Array.from({ length: 23 }, (_, i) => `${i}:${"x".repeat(random.int(0, 60))}`);
  const options = {
    source: memorySource("test", texts),
    tokenizer,
    batchTokens: 40,
    sequenceTokens: 25,
    seed,
    shuffleDocuments: 7,
  };

  const take = async (count: number, from?: DataPosition) => {
    const taken: { batch: PackedTokens; next: DataPosition }[] = [];
    for await (const item of packedBatches(options, from)) {
      taken.push(item);
      if (taken.length === count) break;
    }
    return taken;
  };

  it("reads each document once an epoch, whole, in an order of its own each time", async () => {
    const orders: string[] = [];
    let text = "";
    for (const { batch, next } of await take(200)) {
      expect(batch.tokens).toHaveLength(40);
      for (let s = 0; s + 1 < batch.cuSeqlens.length; s++) {
        const [begin, end] = [batch.cuSeqlens[s], batch.cuSeqlens[s + 1]];
        expect(end - begin).toBeLessThanOrEqual(25);
        // Inside a piece each target is the next token.
        expect(batch.targets.slice(begin, end - 1)).toEqual(batch.tokens.slice(begin + 1, end));
        for (let i = begin; i < end; i++) {
          text += batch.targets[i] === 256 ? "|" : String.fromCharCode(batch.targets[i]);
        }
      }
      if (next.epoch > orders.length) orders.push(text);
    }
    const documents = text.split("|");
    for (let epoch = 0; epoch < orders.length; epoch++) {
      const read = documents.slice(epoch * texts.length, (epoch + 1) * texts.length);
      expect([...read].sort()).toEqual([...texts].sort());
      if (epoch > 0) expect(read).not.toEqual(documents.slice(0, texts.length));
    }
    expect(orders.length).toBeGreaterThan(3);
  });

  it("goes on from any place as if it had not stopped", async () => {
    const all = await take(120);
    for (let round = 0; round < 20; round++) {
      const at = random.int(1, 99);
      const rest = await take(20, all[at - 1].next);
      expect(rest).toEqual(all.slice(at, at + 20));
    }
  });

  it("refuses a source without documents", async () => {
    await expect(packedBatches({ ...options, source: memorySource("empty", []) }).next()).rejects.toThrow(
      "empty: no documents",
    );
  });
});

describe("training", () => {
  it("learns a text by heart: the loss falls under that of its byte bigrams", async () => {
    const text =
      "Call me Ishmael. Some years ago - never mind how long precisely - having little or no money in my purse";
    const tokenizer = new ByteTokenizer();
    const bytes = [256, ...tokenizer.encode(text), 256];
    const counts = new Map<string, number>();
    for (let i = 1; i < bytes.length; i++) {
      for (const key of [`${bytes[i - 1]}`, `${bytes[i - 1]} ${bytes[i]}`])
        counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    let bigram = 0;
    for (let i = 1; i < bytes.length; i++) {
      const pair = counts.get(`${bytes[i - 1]} ${bytes[i]}`) as number;
      bigram -= Math.log(pair / (counts.get(`${bytes[i - 1]}`) as number)) / (bytes.length - 1);
    }
    const model = Transformer.initialize(new ReferenceBackend(), PRESETS.tiny, { seed });
    const trainer = new Trainer(model, { steps: 100, learningRate: 5e-3, warmupSteps: 5 });
    const batches = packedBatches({
      source: memorySource("text", [text]),
      tokenizer,
      batchTokens: bytes.length - 1,
      sequenceTokens: 1000,
      seed,
    });
    let last = Number.POSITIVE_INFINITY;
    while (trainer.step < 100) last = (await trainer.train([(await batches.next()).value.batch])).loss;
    console.log(`loss ${last.toFixed(3)}, bigrams of the same text ${bigram.toFixed(3)}`);
    expect(last).toBeLessThan(bigram);
  });

  it("draws its loss curve", () => {
    const page = lossPage([
      { step: 1, loss: 5 },
      { step: 2, loss: 4, heldOutLoss: 4.5 },
    ]);
    expect(page).toContain("<svg");
    expect(page).toContain("held out");
    expect(page).not.toMatch(/<script|https?:(?!\/\/www\.w3\.org)/);
  });
});

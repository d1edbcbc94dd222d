import { ReferenceBackend } from "@moba-js/reference";
import { ArgumentError, leakCheck } from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import {
  ByteTokenizer,
  evaluationPage,
  inspectRouting,
  makeNeedle,
  meanLoss,
  type NeedleCell,
  type NeedleTask,
  PRESETS,
  sweepNeedles,
  Transformer,
} from "../src/index.js";
import { chainModel, KINDS, miniature, randomModel } from "./models.js";
import { freshSeed, TestRandom } from "./random.js";

const seed = freshSeed();
console.log(`evaluation: seed ${seed}`);
const tokenizer = new ByteTokenizer();
const text =
  "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about a little! Why? ";

describe("perplexity", () => {
  it("of a model without knowledge is about that of the uniform distribution; ignored targets do not count", async () => {
    const model = Transformer.initialize(new ReferenceBackend(), PRESETS.tiny, { seed });
    const random = new TestRandom(seed);
    const targets = random.tokens(100, 257).fill(-1, 0, 20);
    const batch = { tokens: random.tokens(100, 257), targets, cuSeqlens: Int32Array.of(0, 60, 100) };
    const report = await leakCheck(model.backend, () => meanLoss(model, [batch, batch]));
    expect(report.tokens).toBe(160);
    expect(report.loss).toBeCloseTo(Math.log(257), 0);
    expect(report.perplexity).toBeCloseTo(Math.exp(report.loss), 9);
  });
});

describe("needles", () => {
  const make = (task: NeedleTask, change = {}) =>
    makeNeedle({ task, text, tokenizer, tokens: 900, depth: 0.5, seed, ...change });

  it.each<[NeedleTask, RegExp]>([
    ["s-niah-1", /^\d{7}$/],
    ["s-niah-2", /^\d{7}$/],
    ["s-niah-3", /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/],
  ])("of %s are hidden once, at the depth and length asked for", (task, shape) => {
    for (const tokens of [500, 900, 3000]) {
      for (const depth of [0, 0.25, 0.5, 1]) {
        const { prompt, answer, needle } = make(task, { tokens, depth });
        expect(answer).toMatch(shape);
        expect(prompt.split(answer)).toHaveLength(2);
        const length = tokenizer.encode(prompt).length;
        expect(length).toBeLessThanOrEqual(tokens);
        expect(length).toBeGreaterThan(tokens - 120); // a sentence
        const [before, after] = prompt.split(needle).map((part) => part.length);
        const frame = { before: prompt.indexOf("\n") + 1, after: prompt.length - prompt.lastIndexOf("\n") };
        const share = (before - frame.before) / (before - frame.before + after - frame.after);
        expect(Math.abs(share - depth)).toBeLessThan(120 / (tokens - 400));
        expect(prompt.includes("Ishmael")).toBe(task !== "s-niah-1");
      }
    }
  });

  it("differ by seed, and repeat", () => {
    expect(make("s-niah-2")).toEqual(make("s-niah-2"));
    expect(make("s-niah-2", { seed: seed + 1 }).answer).not.toBe(make("s-niah-2").answer);
  });

  it.each([{ depth: 2 }, { tokens: 10 }, { text: "" }])("refuse %o", (change) => {
    expect(() => make("s-niah-2", change)).toThrow(ArgumentError);
  });

  it("are counted right for a model that says the answer at one depth only", async () => {
    // It says tokens 1 to 8 after the last letter of the prompt; its tokenizer writes them as a space and 7 digits.
    const model = chainModel(new ReferenceBackend(), 257, ["s".charCodeAt(0), 1, 2, 3, 4, 5, 6, 7, 8]);
    let prompt = "";
    const knowing = Object.assign(new ByteTokenizer(), {
      encode: (input: string) => {
        if (input.includes("quiz")) prompt = input;
        return tokenizer.encode(input);
      },
      decode: (tokens: ArrayLike<number>) => {
        const answer = / is: (\d{7})\./.exec(prompt)?.[1] as string;
        const early = prompt.indexOf(" is: ") < prompt.length / 2;
        return Array.from(tokens, (token) => ` ${early ? answer : "0000000"}`[token - 1]).join("");
      },
    });
    const cells: NeedleCell[] = [];
    const options = {
      task: "s-niah-2",
      text,
      tokenizer: knowing,
      lengths: [600],
      depths: [0, 1],
      seed,
    } as const;
    for await (const cell of sweepNeedles(model, options)) cells.push(cell);
    expect(cells).toEqual([
      { task: "s-niah-2", length: 600, depth: 0, samples: 1, correct: 1 },
      { task: "s-niah-2", length: 600, depth: 1, samples: 1, correct: 0 },
    ]);
    const page = evaluationPage({ needles: cells, loss: { loss: 1, perplexity: Math.E, tokens: 3 } });
    expect(page).toContain("100 %");
    expect(page).toContain("2.718");
    expect(page).not.toMatch(/<script|https?:/);
  });
});

describe("routing of a model", () => {
  it("finds more of the attention than chance, and all of it when k ≥ n", async () => {
    const random = new TestRandom(seed + 1);
    const model = randomModel(new ReferenceBackend(), PRESETS.tiny, random);
    const heads = await leakCheck(model.backend, () => inspectRouting(model, random.tokens(600, 257)));
    expect(heads.map(({ layer, head }) => [layer, head])).toEqual([
      [1, 0],
      [1, 1],
      [3, 0],
      [3, 1],
    ]);
    const mean = (values: number[]) => values.reduce((a, b) => a + b) / values.length;
    expect(mean(heads.map((one) => one.attentionRecall))).toBeGreaterThan(
      mean(heads.map((one) => one.randomRecall)),
    );
    for (const { attentionRecall, estimate } of heads) {
      expect(attentionRecall).toBeGreaterThan(0);
      expect(attentionRecall).toBeLessThanOrEqual(1);
      if (estimate) expect(estimate.measuredRecall.value).toBeGreaterThan(0);
    }
    expect(heads.some(({ estimate }) => estimate !== undefined)).toBe(true);
    console.log(
      heads
        .map(
          (one) =>
            `${one.layer}.${one.head}: ${one.attentionRecall.toFixed(3)} (${one.randomRecall.toFixed(3)} at random), SNR ${one.estimate?.empiricalSnr.value.toFixed(2)}`,
        )
        .join("\n"),
    );
    expect(evaluationPage({ routing: heads })).toContain("attention found");
    const all = await inspectRouting(model, random.tokens(100, 257)); // 4 blocks, k = 4
    expect(all.every(({ attentionRecall }) => attentionRecall === 1)).toBe(true);
  });

  it("needs MoBA layers", async () => {
    const model = randomModel(new ReferenceBackend(), miniature(KINDS.dense), new TestRandom(seed));
    await expect(inspectRouting(model, [1, 2, 3])).rejects.toThrow(ArgumentError);
  });
});

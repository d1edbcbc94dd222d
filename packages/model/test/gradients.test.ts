import { ReferenceBackend } from "@moba-js/reference";
import { cuSeqlensFromLengths, leakCheck } from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import { type ModelConfig, PRESETS, Tape, Transformer } from "../src/index.js";
import { KINDS, miniature, randomLengths, randomModel } from "./models.js";
import { freshSeed, TestRandom } from "./random.js";

const seed = freshSeed();
console.log(`gradients: seed ${seed}`);

const exactBackend = () => new ReferenceBackend({ exact: true });
const dot = (x: Float64Array, y: Float64Array): number => x.reduce((sum, a, i) => sum + a * y[i], 0);

/** Packed sequences with targets, some of them ignored. */
function randomTokens(random: TestRandom, vocabulary: number, lengths: number[]) {
  const cuSeqlens = cuSeqlensFromLengths(lengths);
  const count = cuSeqlens[lengths.length];
  const targets = random.tokens(count, vocabulary).map((y) => (random.uniform() < 0.1 ? -1 : y));
  return { tokens: random.tokens(count, vocabulary), targets, cuSeqlens };
}

type Example = ReturnType<typeof randomTokens>;

/** The summed loss in float64 and, as text, every block that was chosen on the way. */
async function evaluate(model: Transformer, { tokens, targets, cuSeqlens }: Example) {
  const choices: Promise<Float64Array>[] = [];
  const losses = model.backend.scope(() => {
    const tape = new Tape(model.backend, { record: false });
    const batch = model.packedBatch(tokens, cuSeqlens, ({ routing }) =>
      choices.push(routing.indices.values()),
    );
    return model.loss(tape, batch, model.backend.tensor(targets, [targets.length], "i32")).value;
  });
  const loss = (await losses.values()).reduce((a, b) => a + b, 0);
  losses.dispose();
  return { loss, choices: (await Promise.all(choices)).join(";") };
}

/** The gradient of the summed loss for each parameter. */
async function gradientsOf(model: Transformer, { tokens, targets, cuSeqlens }: Example, recompute = false) {
  const { backend } = model;
  backend.scope(() => {
    const tape = new Tape(backend, { recompute });
    const losses = model.loss(
      tape,
      model.packedBatch(tokens, cuSeqlens),
      backend.tensor(targets, [targets.length], "i32"),
    );
    tape.backward(losses, backend.tensor(new Float32Array(targets.length).fill(1), [targets.length]));
    return [...model.parameters.values()].map(({ gradient }) => gradient);
  });
  const gradients = new Map<string, Float64Array>();
  for (const [name, parameter] of model.parameters) {
    if (!parameter.gradient) throw new Error(`${name} has no gradient`);
    gradients.set(name, await parameter.gradient.values());
    parameter.gradient.dispose();
    parameter.gradient = undefined;
  }
  return gradients;
}

/** Smaller steps would measure the rounding of the loss. */
const STEPS = [3e-7, 7.5e-8];

/**
 * The relative error of the gradient in one direction for each parameter: its own direction and a random one added. The step
 * is made smaller where it would change a routing, since no gradient flows through that; undefined where that does not help:
 * the model is too near such a change.
 */
async function directionalErrors(
  model: Transformer,
  example: Example,
  random: TestRandom,
): Promise<Map<string, number> | undefined> {
  const gradients = await gradientsOf(model, example);
  const base = await evaluate(model, example);
  const moved = async (name: string, values: ArrayLike<number>) => {
    const parameters = new Map([...model.parameters].map(([key, { value }]) => [key, value]));
    const tensor = model.backend.tensor(values, parameters.get(name)?.shape as number[]);
    const result = await evaluate(
      new Transformer(model.backend, model.config, parameters.set(name, tensor)),
      example,
    );
    tensor.dispose();
    return result;
  };
  const errors = new Map<string, number>();
  for (const [name, parameter] of model.parameters) {
    const gradient = gradients.get(name) as Float64Array;
    const start = await parameter.value.values();
    const norm = Math.sqrt(dot(gradient, gradient));
    for (let attempt = 0; attempt < 10 && !errors.has(name); attempt++) {
      const direction = gradient.map((g) => g / norm + random.normal() / Math.sqrt(gradient.length));
      for (const h of STEPS) {
        // Mirrored after rounding: were the middle not the point itself, the gradient's own change would show.
        const high = Float32Array.from(start, (x, i) => x + h * direction[i]);
        const low = Float32Array.from(start, (x, i) => 2 * x - high[i]);
        const step = Float64Array.from(high, (x, i) => x - low[i]);
        const expected = dot(gradient, step);
        // Rounded to float32, a step may be left that hardly goes along the gradient: another direction then.
        if (Math.abs(expected) < 0.2 * norm * Math.sqrt(dot(step, step))) break;
        const [up, down] = [await moved(name, high), await moved(name, low)];
        if (up.choices !== base.choices || down.choices !== base.choices) continue;
        errors.set(name, Math.abs(up.loss - down.loss - expected) / Math.abs(expected));
        break;
      }
    }
    if (!errors.has(name)) return undefined;
  }
  return errors;
}

/** The errors for the first of some random models that is not too near a change of its routing. */
async function errorsOfSome(
  draw: () => [Transformer, Example],
  random: TestRandom,
): Promise<Map<string, number>> {
  for (let attempt = 0; attempt < 20; attempt++) {
    const errors = await directionalErrors(...draw(), random);
    if (errors) return errors;
  }
  throw new Error("20 random models in a row change their routing at every step");
}

function expectSmall(errors: Map<string, number>): void {
  for (const [name, error] of errors) expect(error, name).toBeLessThan(1e-6);
}

describe.each(Object.entries(KINDS))("a model with %s", (name, attention) => {
  const random = new TestRandom(seed + name.length);

  it("has the gradients of finite differences in float64, to 1e-6, with random packing", async () => {
    for (let round = 0; round < 5; round++) {
      const draw = (): [Transformer, Example] => [
        randomModel(exactBackend(), miniature(attention), random),
        randomTokens(random, 11, [...randomLengths(random, 20), 9]),
      ];
      expectSmall(await errorsOfSome(draw, random));
    }
  });

  it("has the same gradients with recomputation, bit for bit, and leaks nothing", async () => {
    const backend = new ReferenceBackend();
    const model = randomModel(backend, miniature(attention), random);
    const example = randomTokens(random, 11, [20, 0, 13]);
    await leakCheck(backend, async () => {
      const plain = await gradientsOf(model, example);
      const recomputed = await gradientsOf(model, example, true);
      for (const [parameter, gradient] of plain)
        expect(recomputed.get(parameter), parameter).toEqual(gradient);
    });
  });
});

describe("the tiny preset", () => {
  it.each([
    ["moba", PRESETS.tiny],
    ["dense", { ...PRESETS.tiny, attention: { kind: "dense" } } as ModelConfig],
  ])("with %s has the gradients of finite differences in float64, to 1e-6", async (_, config) => {
    const random = new TestRandom(seed);
    const draw = (): [Transformer, Example] => [
      randomModel(exactBackend(), config, random),
      randomTokens(random, 257, [150, 0, 37]),
    ];
    const errors = await errorsOfSome(draw, random);
    console.log(`worst relative error: ${Math.max(...errors.values()).toExponential(1)}`);
    expectSmall(errors);
  });

  it("in bf16 has about the gradients of float32", async () => {
    const random = new TestRandom(seed);
    const example = randomTokens(random, 257, [100, 30]);
    const backend = new ReferenceBackend();
    const model = Transformer.initialize(backend, PRESETS.tiny, { seed });
    const parameters = new Map([...model.parameters].map(([key, { value }]) => [key, value]));
    const mixed = new Transformer(backend, PRESETS.tiny, parameters, "bf16");
    const [exact, rounded] = [await gradientsOf(model, example), await gradientsOf(mixed, example)];
    for (const [name, gradient] of exact) {
      if (name.includes("conv")) continue; // starts at zero, with a gradient near it
      const other = rounded.get(name) as Float64Array;
      expect(
        dot(gradient, other) / Math.sqrt(dot(gradient, gradient) * dot(other, other)),
        name,
      ).toBeGreaterThan(0.95);
    }
  });
});

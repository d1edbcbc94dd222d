import { ReferenceBackend } from "@moba-js/reference";
import {
  type AttendBackwardProblem,
  type AttentionBackwardProblem,
  type AttentionGradients,
  FLOAT_DTYPES,
  type FloatDType,
  type Tensor,
} from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import { checkGradients } from "../src/gradient-check.js";
import { gaussians, generator, integer } from "../src/random.js";
import { freshSeed } from "./support.js";

const seed = freshSeed();
const small = { blockSize: 12, topK: 3, cuSeqlens: Int32Array.of(0, 60, 100) };

const check = (
  backend: ReferenceBackend,
  { dtype = "f32" as FloatDType, options = small, dense = true, heads = 4 } = {},
) => {
  const random = generator("gradient check", seed);
  const tokens = options.cuSeqlens.at(-1) as number;
  const tensor = (width: number) =>
    backend.tensor(gaussians(random, tokens * width * 16), [tokens, width, 16], dtype);
  const tensors = { q: tensor(heads), k: tensor(heads / 2), v: tensor(heads / 2), dOut: tensor(heads) };
  return checkGradients(backend, tensors, options, { dense }, random);
};

const elements = (tensor: Tensor) => (tensor.storage as unknown as { array: Float32Array }).array;

/** Changes finished gradients. */
class Spoiled extends ReferenceBackend {
  constructor(private readonly spoil: (gradients: AttentionGradients) => void) {
    super();
  }
  protected override runAttendBackward(problem: AttendBackwardProblem, outputs: AttentionGradients): void {
    super.runAttendBackward(problem, outputs);
    this.spoil(outputs);
  }
}

/** Takes another scale for dense attention. */
class WrongDense extends ReferenceBackend {
  protected override runAttentionBackward(
    problem: AttentionBackwardProblem & { causal: boolean },
    outputs: AttentionGradients,
  ): void {
    super.runAttentionBackward({ ...problem, scale: problem.scale * 1.01 }, outputs);
  }
}

describe("checkGradients", () => {
  it.each(FLOAT_DTYPES)("passes the CPU backend in %s, all rows of a small problem", async (dtype) => {
    const result = await check(new ReferenceBackend(), { dtype });
    expect(result).toMatchObject({ passed: true, keys: 100 * 2, queries: 100 * 4 });
    for (const errors of [result.moba, result.dense]) {
      for (const { error } of Object.values(errors ?? {})) expect(error).toBeGreaterThan(0);
    }
  });

  it.each(FLOAT_DTYPES)("passes gradients that are 0 since a query sees one key, in %s", async (dtype) => {
    const options = { ...small, blockSize: 1, topK: 1 };
    const { passed } = await check(new ReferenceBackend(), { dtype, options, dense: false });
    expect(passed).toBe(true);
  });

  it.each(["dq", "dk", "dv"] as const)("fails one wrong element of %s", async (wrong) => {
    const backend = new Spoiled((gradients) => {
      const array = elements(gradients[wrong]);
      array[integer(generator("spoiled", seed), array.length)] += 0.1;
    });
    const { passed, moba } = await check(backend);
    expect(passed).toBe(false);
    for (const name of ["dq", "dk", "dv"] as const) {
      expect(moba[name].error <= moba[name].bound).toBe(name !== wrong);
    }
  });

  it("fails gradients of dense attention by themselves", async () => {
    const { passed, moba, dense } = await check(new WrongDense());
    expect(passed).toBe(false);
    expect(moba.dk.error).toBeLessThan(moba.dk.bound);
    expect(dense?.dk.error).toBeGreaterThan(dense?.dk.bound as number);
  });

  it("looks at some blocks of a larger problem, the short one at the end among them", async () => {
    const options = { blockSize: 64, topK: 8, cuSeqlens: Int32Array.of(0, 3000) };
    const right = await check(new ReferenceBackend(), { options, dense: false, heads: 2 });
    expect(right.passed).toBe(true);
    expect(right.keys).toBeLessThan(3000);
    expect(right.keys).toBeGreaterThan(64);
    const backend = new Spoiled(({ dv }) => {
      elements(dv).fill(Number.NaN, -16);
    });
    const wrong = await check(backend, { options, dense: false, heads: 2 });
    expect(wrong.passed).toBe(false);
    expect(wrong.moba.dv.error).toBeNaN();
  });
});

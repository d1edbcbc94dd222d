import { ReferenceBackend } from "@moba-js/reference";
import {
  type AttendProblem,
  type AttentionResult,
  FLOAT_DTYPES,
  type RouteProblem,
  type Tensor,
} from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import { gaussians, generator } from "../src/random.js";
import { checkRows } from "../src/row-check.js";
import { freshSeed } from "./support.js";

const seed = freshSeed();
const options = { blockSize: 12, topK: 3, cuSeqlens: Int32Array.of(0, 60, 100) };

const check = (backend: ReferenceBackend, dtype: (typeof FLOAT_DTYPES)[number] = "f32") => {
  const random = generator("row check", seed);
  const tensor = (heads: number) =>
    backend.tensor(gaussians(random, 100 * heads * 16), [100, heads, 16], dtype);
  return checkRows(
    backend,
    { q: tensor(4), k: tensor(2), v: tensor(2) },
    options,
    { rows: 60, dense: true },
    random,
  );
};

/** Adds a little to one output of every row. */
class WrongAttend extends ReferenceBackend {
  protected override runAttend(problem: AttendProblem, outputs: AttentionResult): void {
    super.runAttend(problem, outputs);
    const { array } = outputs.out.storage as unknown as { array: Float32Array };
    for (let i = 0; i < array.length; i += 16) array[i] += 1e-3;
  }
}

/** Chooses the first blocks instead of the best. */
class WrongRoute extends ReferenceBackend {
  protected override runRoute(problem: RouteProblem, indices: Tensor<"i32">): void {
    super.runRoute(problem, indices);
    const { array } = indices.storage as unknown as { array: Int32Array };
    const { slots, heads, blockSize, cuSeqlens } = problem;
    for (let row = 0; row * slots < array.length; row++) {
      const token = Math.floor(row / heads);
      const begin = cuSeqlens.findLast((first) => first <= token) as number;
      const own = Math.floor((token - begin) / blockSize);
      if (own >= slots) array.set([own, 0, 1], row * slots);
    }
  }
}

/** Forgets a block. */
class ShortRoute extends ReferenceBackend {
  protected override runRoute(problem: RouteProblem, indices: Tensor<"i32">): void {
    super.runRoute(problem, indices);
    const { array } = indices.storage as unknown as { array: Int32Array };
    for (let row = 0; row < array.length; row += problem.slots) array[row] = -1;
  }
}

describe("checkRows", () => {
  it.each(FLOAT_DTYPES)("passes the CPU backend in %s", async (dtype) => {
    const result = await check(new ReferenceBackend(), dtype);
    expect(result.passed).toBe(true);
    expect(result.rows).toBe(60);
    expect(result.dense?.error).toBeGreaterThan(0);
  });

  it("fails attention that is slightly wrong", async () => {
    const { passed, moba, dense, routing } = await check(new WrongAttend());
    expect(passed).toBe(false);
    expect(moba.error).toBeGreaterThan(moba.bound);
    expect(dense?.error).toBeLessThan(dense?.bound as number);
    expect(routing.error).toBe(0);
  });

  it("fails a routing that is not the best or not complete", async () => {
    const wrong = await check(new WrongRoute());
    expect(wrong.passed).toBe(false);
    expect(wrong.routing.error).toBeGreaterThan(wrong.routing.bound);
    expect(wrong.moba.error).toBeLessThan(wrong.moba.bound); // judged on the backend's own routing
    expect((await check(new ShortRoute())).routing.error).toBe(Number.POSITIVE_INFINITY);
  });
});

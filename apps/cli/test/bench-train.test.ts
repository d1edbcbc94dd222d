import { PRESETS } from "@moba-js/model";
import { describe, expect, it } from "vitest";
import { trainingFlop } from "../src/commands/bench-train.js";
import { freshSeed, moba } from "./support.js";

const seed = freshSeed();

describe("bench train", () => {
  it("times steps whose loss falls", async () => {
    const args = [
      "bench",
      "train",
      "--backend",
      "cpu",
      "--preset",
      "tiny",
      "--compute",
      "f32",
      "--batch",
      "2",
    ];
    const rest = ["--context", "40", "24", "--steps", "3", "--seed", String(seed), "--json"];
    const { code, stdout } = await moba(...args, ...rest);
    expect(code).toBe(0);
    const { cases, device } = JSON.parse(stdout);
    expect(device).toContain("plain TypeScript");
    expect(cases.map((result: { context: number }) => result.context)).toEqual([40, 24]);
    for (const { context, milliseconds, tokensPerSecond, loss, hostMilliseconds } of cases) {
      expect(tokensPerSecond).toBeCloseTo((2 * context * 1000) / milliseconds, 6);
      expect(loss.first).toBeGreaterThan(loss.last);
      expect(Math.abs(loss.first - Math.log(257))).toBeLessThan(0.3);
      expect(hostMilliseconds).toBeGreaterThan(0);
    }
  });

  it("counts the work of a step query by query", () => {
    for (const attention of [{ kind: "dense" } as const, PRESETS.tiny.attention]) {
      const config = { ...PRESETS.tiny, attention };
      const { hidden, mlp, layers, heads, kvHeads, headDim, vocabulary, window } = config;
      const [context, batch] = [150, 3];
      const [q, kv] = [heads * headDim, kvHeads * headDim];
      let weights = vocabulary * hidden + hidden;
      let scores = 0; // of a query with a key, forward
      let routed = 0; // of a query with a block
      for (let layer = 0; layer < layers; layer++) {
        weights += 2 * hidden * q + 2 * hidden * kv + 3 * hidden * mlp + 2 * hidden;
        for (let t = 0; t < context; t++) {
          if (layer % 2 === 0) scores += Math.min(t + 1, window);
          else if (attention.kind === "dense") scores += t + 1;
          else {
            const own = Math.floor(t / attention.blockSize);
            routed += own;
            scores += Math.min(attention.topK - 1, own) * attention.blockSize + (t % attention.blockSize) + 1;
          }
        }
        if (layer % 2 === 1 && attention.kind === "moba") weights += attention.convWidth * kv;
      }
      const perScore = 2 * headDim * heads * batch;
      const expected = 6 * weights * batch * context + perScore * (7 * scores + routed);
      expect(trainingFlop(config, context, batch) / expected).toBeCloseTo(1, 12);
    }
  });
});

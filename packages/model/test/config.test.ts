import { ReferenceBackend } from "@moba-js/reference";
import { ArgumentError, ShapeError } from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import { checkConfig, layerAttention, PRESETS, parameterCount, Transformer } from "../src/index.js";

describe("presets", () => {
  it("have these parameter counts", () => {
    const counts = Object.entries(PRESETS).map(([name, config]) => [name, parameterCount(config)]);
    console.log(counts.map(([name, count]) => `${name}: ${count.toLocaleString("en")}`).join("\n"));
    // By hand: V·C + L (2·C·H·d + 2·C·Hkv·d + 3·C·M + 2·C) + (L/2)·W·Hkv·d + C.
    expect(Object.fromEntries(counts)).toEqual({
      tiny: 257 * 64 + 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176 + 2 * 64) + 2 * 3 * 32 + 64,
      small: 32000 * 320 + 8 * (4 * 320 * 320 + 3 * 320 * 880 + 2 * 320) + 4 * 3 * 320 + 320,
      "340m": 32000 * 1024 + 24 * (4 * 1024 * 1024 + 3 * 1024 * 2816 + 2 * 1024) + 12 * 3 * 1024 + 1024,
      "1b": 32000 * 2048 + 18 * (4 * 2048 * 2048 + 3 * 2048 * 5632 + 2 * 2048) + 9 * 3 * 2048 + 2048,
    });
  });

  it("alternate window and global layers, in pairs", () => {
    for (const config of Object.values(PRESETS)) {
      expect(config.layers % 2).toBe(0);
      expect(layerAttention(config, 0).kind).toBe("window");
      expect(layerAttention(config, 1)).toEqual(config.attention);
      expect(checkConfig(config)).toEqual(config);
    }
  });
});

describe("a config", () => {
  it.each([
    ["config.heads", { heads: 0 }],
    ["config.kvHeads", { kvHeads: 3 }],
    ["config.headDim", { headDim: 31 }],
    ["config.ropeBase", { ropeBase: Number.NaN }],
    ["config.normEpsilon", { normEpsilon: -1 }],
    ["config.attention", { attention: { kind: "sparse" } }],
    ["config.attention.topK", { attention: { kind: "moba", blockSize: 4, topK: 0, convWidth: 0 } }],
    ["config.attention.convWidth", { attention: { kind: "moba", blockSize: 4, topK: 1, convWidth: -1 } }],
  ])("is refused for a bad %s", (argument, change) => {
    const config = { ...PRESETS.tiny, ...change } as never;
    expect(() => checkConfig(config)).toThrow(ArgumentError);
    expect(() => checkConfig(config)).toThrow(`${argument}: expected`);
  });

  it("of another shape than the parameters is refused by name", () => {
    const backend = new ReferenceBackend();
    expect(() => new Transformer(backend, PRESETS.tiny, new Map())).toThrow(ShapeError);
    expect(() => new Transformer(backend, PRESETS.tiny, new Map())).toThrow("embedding.weight");
  });
});

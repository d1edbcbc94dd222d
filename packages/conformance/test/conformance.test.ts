import { ReferenceBackend } from "@moba-js/reference";
import { type DType, FLOAT_DTYPES, OPERATIONS, type Operation } from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import {
  type ConformanceOptions,
  type ConformanceResult,
  formatMatrix,
  GROUPS,
  runConformance,
} from "../src/index.js";
import { deviceArithmetic } from "./device-arithmetic.js";

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
console.log(`conformance: seed ${seed}`);

describe("a right backend passes", () => {
  it("whole: the CPU backend", async () => {
    const backend = new ReferenceBackend();
    const seen: ConformanceResult[] = [];
    const report = await runConformance(backend, { seed, onResult: (result) => seen.push(result) });
    console.log(formatMatrix(report));
    expect(report.failed, formatMatrix(report)).toBe(0);
    expect(report).toMatchObject({ backend: "cpu", seed, skipped: 0, passed: report.results.length });
    expect(seen).toEqual(report.results);
    for (const group of GROUPS) {
      for (const dtype of FLOAT_DTYPES) {
        const results = report.results.filter((result) => result.group === group && result.dtype === dtype);
        expect(results.length, `${group} ${dtype}`).toBeGreaterThan(10);
      }
    }
    expect(backend.memory()).toMatchObject({ tensors: 0, bytes: 0 });
    expect(backend.debug).toEqual({ poisonOutputs: false, traceTensors: false });
  });

  it("with the arithmetic of a GPU: float32 inside, probabilities and partial results rounded", async () => {
    const only = ["attention", "windowAttention", "attend", "attendBackward", "moba"] as const;
    const report = await runConformance(deviceArithmetic(), { seed, only });
    expect(report.failed, formatMatrix(report)).toBe(0);
  });
});

/** A backend that lacks bf16 and the backward pass. */
class Partial extends ReferenceBackend {
  override supports(operation: Operation, dtype: DType): boolean {
    return dtype !== "bf16" && operation !== "attendBackward" && super.supports(operation, dtype);
  }
}

/** A backend that cannot attend in any way. */
class Failing extends ReferenceBackend {
  protected override runAttention(): void {
    throw new Error("the device is on fire");
  }
}

describe("the report", () => {
  it("repeats with its seed and is plain JSON", async () => {
    const options = { seed, only: ["route", "keyConv", "properties"], dtypes: ["bf16"] } as const;
    const [first, second] = [
      await runConformance(new ReferenceBackend(), options),
      await runConformance(new ReferenceBackend(), options),
    ];
    expect(second).toEqual(first);
    expect(JSON.parse(JSON.stringify(first))).toEqual(first);
    expect(new Set(first.results.map(({ group }) => group))).toEqual(new Set(options.only));
    expect(new Set(first.results.map(({ dtype }) => dtype))).toEqual(new Set(options.dtypes));
    const other = await runConformance(new ReferenceBackend(), { ...options, seed: seed + 1 });
    expect(other.results).not.toEqual(first.results);
  });

  it("skips what a backend denies, says why, and fails nothing for it", async () => {
    const report = await runConformance(new Partial(), {
      seed,
      only: ["attendBackward", "centroids", "badInput"],
    });
    expect(report.failed, formatMatrix(report)).toBe(0);
    const skipped = report.results.filter(({ status }) => status === "skipped");
    expect(skipped.map(({ group, dtype }) => `${group} ${dtype}`)).toEqual([
      "centroids bf16",
      "attendBackward f32",
      "attendBackward f16",
      "attendBackward bf16",
      "badInput f32",
      "badInput f16",
      "badInput bf16",
    ]);
    expect(formatMatrix(report)).toContain(
      "- attendBackward f32: cpu does not support attendBackward in f32",
    );
    expect(formatMatrix(report)).toContain("- centroids bf16: cpu does not support any operation in bf16");
  });

  it("goes on after a check that throws, and leaves the backend as it was", async () => {
    const backend = new Failing();
    const report = await runConformance(backend, { seed, only: ["attention", "centroids"], dtypes: ["f32"] });
    const ofGroup = (group: string) => report.results.filter((result) => result.group === group);
    expect(ofGroup("attention").every(({ status }) => status === "failed")).toBe(true);
    expect(ofGroup("centroids").every(({ status }) => status === "passed")).toBe(true);
    expect(backend.memory()).toMatchObject({ tensors: 0, bytes: 0 });
    expect(backend.debug.poisonOutputs).toBe(false);
  });

  it("names in each failure what it takes to repeat it", async () => {
    const report = await runConformance(new Failing(), { seed, only: ["attention"], dtypes: ["f16"] });
    const text = formatMatrix(report);
    expect(text).toContain(`FAIL ${report.failed} of ${report.failed}`);
    expect(text).toContain(
      `- attention f16, G = 4: N=[45] H=8 Hkv=2 d=16 B=8 k=3 · runs: Error: the device is on fire (seed ${seed})`,
    );
    expect(text).toMatch(/\d+ passed, \d+ failed, \d+ skipped$/);
  });

  it.each([
    ["seed", { seed: 0.5 }],
    ["only", { only: ["attention", "everything"] }],
    ["dtypes", { dtypes: ["i32"] }],
    ["timeoutSeconds", { timeoutSeconds: 0 }],
    ["options", null],
  ])("refuses a bad %s", async (argument, options) => {
    const run = runConformance(new ReferenceBackend(), options as ConformanceOptions);
    await expect(run).rejects.toMatchObject({ argument });
  });

  it("has a row for every operation", () => {
    expect(GROUPS).toEqual(expect.arrayContaining([...OPERATIONS]));
  });
});

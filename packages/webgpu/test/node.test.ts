import { formatMatrix } from "@moba-js/conformance";
import { describe, expect, it } from "vitest";
import { bundledSize, nodeHost, nodeLacks } from "./hosts.js";

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
console.log(`webgpu in Node: seed ${seed}`);
if (nodeLacks) console.log(`skipped: ${nodeLacks}`);

/** Steps of training: the first 200 take about a minute on a CPU device. */
const STEPS = Number(process.env.STEPS ?? 60);

describe.skipIf(nodeLacks)("in Node", { timeout: 600_000 }, async () => {
  const host = nodeLacks ? undefined : await nodeHost();
  const run: NonNullable<typeof host>["run"] = (name, input) =>
    (host as NonNullable<typeof host>).run(name, input);

  it.each([
    ["plain, within the limits of any device", { tier: "plain", limits: "default" }, ["f32"]],
    ["with subgroups", { tier: "subgroups", limits: "adapter" }, ["bf16"]],
  ] as const)("conforms: %s", async (_, device, dtypes) => {
    const { report, complaints, limits } = await run("conformance", { device, options: { seed, dtypes } });
    console.log(formatMatrix(report));
    expect(report.failed, formatMatrix(report)).toBe(0);
    expect(report.skipped).toBe(0);
    expect(report.device).toContain(`tier ${device.tier}`);
    expect(complaints).toEqual([]);
    if (device.limits === "default") expect(limits).toEqual({ storage: 16384, buffers: 8 });
  });

  it("takes the highest tier that a device reaches, and none that it does not reach", async () => {
    const { tiers, refusals } = await run("tierChoice", undefined);
    expect(tiers).toEqual({
      bare: "plain",
      full: "shader-f16",
      other: "shader-f16",
      wide: "subgroup-matrix",
    });
    expect(refusals).toHaveLength(3);
    for (const refusal of refusals)
      expect(refusal).toMatch(/^DeviceError: webgpu: the tier \S+ is not reached/);
  });

  it.each([
    ["shader-f16", ["attend-subgroup", "attention-backward-subgroup"]],
    ["subgroup-matrix", ["route-matrix", "attend-matrix", "merge-slots"]],
  ] as const)("compiles the kernels of tier %s", async (tier, expected) => {
    const { complaints, kernels } = await run("compilingExperimental", { tier });
    expect(complaints).toEqual([]);
    expect(kernels).toEqual(expect.arrayContaining([...expected]));
  });

  // Matrices take probabilities in f16: unit roundoff 2⁻¹¹.
  it.each([
    ["shader-f16", { wide: false, bound: 1e-4 }, ["attend-subgroup"]],
    ["subgroup-matrix", { wide: true, bound: 2 ** -11 }, ["route-matrix", "attend-matrix", "merge-slots"]],
  ] as const)(
    "computes attention in tier %s, its operations rewritten",
    async (name, { wide, bound }, names) => {
      const { tier, differences, kernels, report } = await run("emulated", { seed, wide });
      console.log(differences);
      expect(tier).toBe(name);
      expect(kernels).toEqual(expect.arrayContaining([...names, "attention-backward-subgroup"]));
      expect(differences).toEqual({ "routed attention": expect.any(Number), attention: expect.any(Number) });
      expect(differences["routed attention"]).toBeLessThan(bound);
      expect(differences.attention).toBeLessThan(1e-4);
      expect(report?.failed, report && formatMatrix(report)).toBe(wide ? 0 : undefined);
    },
  );

  it("cuts what does not fit: waves, split keys, long lists of choices, many blocks", async () => {
    const differences = await run("cutProblems", { seed });
    console.log(differences);
    expect(Object.keys(differences)).toHaveLength(4);
    for (const [name, difference] of Object.entries(differences)) expect(difference, name).toBeLessThan(1e-5);
  });

  it("computes on tensors larger than can be bound, in grids larger than one dimension", async () => {
    const differences = await run("narrowProblems", { seed });
    console.log(differences);
    expect(Object.keys(differences)).toHaveLength(12);
    for (const [name, difference] of Object.entries(differences)) expect(difference, name).toBeLessThan(1e-5);
  });

  it(`trains tiny as the CPU does, ${STEPS} steps`, async () => {
    const { webgpu, cpu } = await run("training", { seed, steps: STEPS });
    const worst = Math.max(...webgpu.map((loss, i) => Math.abs(loss / cpu[i] - 1)));
    console.log(
      `loss ${cpu[0].toFixed(3)} → ${cpu[STEPS - 1].toFixed(3)}, at most ${(100 * worst).toFixed(3)} % apart`,
    );
    expect(cpu[STEPS - 1]).toBeLessThan(cpu[0] - 1);
    expect(worst).toBeLessThan(0.01);
  });

  it("keeps memory flat over 100 000 small operations", async () => {
    const reports = await run("manyOperations", { count: 100_000 });
    expect(reports).toHaveLength(10);
    for (const report of reports) expect(report).toEqual(reports[0]);
    expect(reports[0].buffersMade).toBeLessThan(10);
  });

  it("tells a lost device, and goes on with a new one", async () => {
    const { reading, calling, timing, after } = await run("lostDevice", undefined);
    for (const error of [reading, calling, timing])
      expect(error).toMatch(/^DeviceError: webgpu: the device is lost/);
    expect(after).toEqual([40, 2]);
  });

  it("keeps two backends on one device apart", async () => {
    const { results, failure, complaints } = await run("twoBackends", undefined);
    const [two, one] = [
      [20, 40, 60],
      [2, 4, 6],
    ];
    expect(results).toEqual([two, one, two, one, two, one, two]);
    expect(failure).toMatch(/^DeviceError: webgpu: no memory for 1073741824 bytes/);
    expect(complaints).toEqual([]);
  });

  it("fills a buffer after the kernels that wait and still use it", async () => {
    const lengths = [64, 4096, 100_000];
    const { values, buffersMade } = await run("reusedBuffers", { lengths });
    expect(buffersMade).toEqual([0, 0, 0]); // the freed ones are taken
    expect(values).toEqual(lengths.map(() => [7, 7]));
  });

  it("keeps what was used last", async () => {
    expect(await run("buffersOfRounds", { rounds: 3 })).toEqual([2, 0, 0]);
  });

  it("compiles ahead", async () => {
    const { progress, made, value } = await run("compiling", undefined);
    expect(progress).toEqual([
      [0, 1],
      [1, 1],
    ]);
    expect(made).toBe(0);
    expect(value).toBe(30);
  });

  it("measures device time", async () => {
    const { something, nothing } = await run("timing", undefined);
    expect(something).toBeGreaterThan(nothing);
    expect(nothing).toBeGreaterThanOrEqual(0);
  });
});

it("is at most 60 kB, minified and compressed", async () => {
  const size = await bundledSize(`import { openWebGpu } from "../src/index.ts"; console.log(openWebGpu);`);
  console.log(`bundle of the backend: ${(size / 1000).toFixed(1)} kB`);
  expect(size).toBeLessThan(60_000);
});

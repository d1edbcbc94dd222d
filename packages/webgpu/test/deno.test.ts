import { formatMatrix } from "@moba-js/conformance";
import { describe, expect, it } from "vitest";
import { denoHost, denoLacks } from "./hosts.js";

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
console.log(`webgpu in Deno: seed ${seed}`);
if (denoLacks) console.log(`skipped: ${denoLacks}`);

describe.skipIf(denoLacks)("in Deno", { timeout: 1_200_000 }, async () => {
  const host = denoLacks ? undefined : await denoHost();
  const run: NonNullable<typeof host>["run"] = (name, input) =>
    (host as NonNullable<typeof host>).run(name, input);

  it("conforms, within the limits of any device", async () => {
    const { report, complaints } = await run("conformance", {
      device: { tier: "plain", limits: "default" },
      options: { seed, dtypes: ["f32"] },
    });
    console.log(formatMatrix(report));
    expect(report.failed, formatMatrix(report)).toBe(0);
    expect(report.skipped).toBe(0);
    expect(complaints).toEqual([]);
  });

  it("keeps memory flat over 10 000 small operations", async () => {
    const reports = await run("manyOperations", { count: 10_000 });
    for (const report of reports) expect(report).toEqual(reports[0]);
  });

  it("tells a lost device, and goes on with a new one", async () => {
    const { reading, calling, timing, after } = await run("lostDevice", undefined);
    for (const error of [reading, calling, timing])
      expect(error).toMatch(/^DeviceError: webgpu: the device is lost/);
    expect(after).toEqual([40, 2]);
  });
});

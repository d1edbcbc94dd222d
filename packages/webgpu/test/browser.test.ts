import { formatMatrix } from "@moba-js/conformance";
import { afterAll, describe, expect, it } from "vitest";
import { browserHost, browserLacks } from "./hosts.js";

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
console.log(`webgpu in a browser: seed ${seed}`);
if (browserLacks) console.log(`skipped: ${browserLacks}`);

describe.skipIf(browserLacks)(
  "in a page under a strict Content-Security-Policy",
  { timeout: 600_000 },
  async () => {
    const host = browserLacks ? undefined : await browserHost();
    afterAll(() => host?.close());
    const run: NonNullable<typeof host>["run"] = (name, input) =>
      (host as NonNullable<typeof host>).run(name, input);

    it("conforms", async () => {
      const { report, complaints } = await run("conformance", {
        device: { tier: "subgroups", limits: "adapter" },
        options: { seed, dtypes: ["f16"] },
      });
      console.log(formatMatrix(report));
      expect(report.failed, formatMatrix(report)).toBe(0);
      expect(report.skipped).toBe(0);
      expect(complaints).toEqual([]);
    });

    it("keeps memory flat over 100 000 small operations", async () => {
      const reports = await run("manyOperations", { count: 100_000 });
      for (const report of reports) expect(report).toEqual(reports[0]);
    });

    it("tells a lost device, and the page goes on with a new one", async () => {
      const { reading, calling, timing, after } = await run("lostDevice", undefined);
      for (const error of [reading, calling, timing])
        expect(error).toMatch(/^DeviceError: webgpu: the device is lost/);
      expect(after).toEqual([40, 2]);
    });

    it("keeps two backends on one device apart", async () => {
      const { results, failure, complaints } = await run("twoBackends", undefined);
      expect(results.at(-1)).toEqual([20, 40, 60]);
      expect(failure).toMatch(/^DeviceError/);
      expect(complaints).toEqual([]);
    });
  },
);

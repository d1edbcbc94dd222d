import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import type { ConformanceReport } from "@moba-js/conformance";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { describe, expect, it } from "vitest";

/** Bundles code for browsers as a user's bundler would, from the built packages. A Node import would fail here. */
async function bundle(code: string, from: "conformance" | "snr"): Promise<string> {
  const resolveDir = fileURLToPath(new URL(`../packages/${from}`, import.meta.url));
  const { outputFiles } = await build({
    stdin: { contents: code, resolveDir },
    bundle: true,
    minify: true,
    write: false,
    format: "iife",
    platform: "browser",
  });
  return outputFiles[0].text;
}

const browser =
  process.env.CHROMIUM ??
  spawnSync("which", ["chromium", "google-chrome"], { encoding: "utf8" }).stdout.split("\n")[0];
// CI must not skip what it is there to test.
const missing = !browser && !process.env.CI;
if (missing) console.log("skipped: no Chromium found (install one, or name it in CHROMIUM)");

describe("in a browser", () => {
  it.skipIf(missing)("the oracle passes the conformance suite in float32", async () => {
    const code = await bundle(
      `import { runConformance } from "@moba-js/conformance";
       import { ReferenceBackend } from "@moba-js/reference";
       globalThis.run = () => runConformance(new ReferenceBackend(), { dtypes: ["f32"] });`,
      "conformance",
    );
    const instance = await chromium.launch({ executablePath: browser, args: ["--no-sandbox"] });
    try {
      const page = await instance.newPage();
      await page.addScriptTag({ content: code });
      const report = (await page.evaluate("run()")) as ConformanceReport;
      console.log(`the oracle in a browser: seed ${report.seed}`);
      expect(report.results.filter(({ status }) => status === "failed")).toEqual([]);
      expect(report.passed).toBeGreaterThan(50);
    } finally {
      await instance.close();
    }
  });
});

describe("bundles", () => {
  it("of one function of @moba-js/tensor hold that function only", async () => {
    const code = await bundle(
      `import { toBF16Bits } from "@moba-js/tensor"; console.log(toBF16Bits(Math.random()));`,
      "conformance",
    );
    expect(gzipSync(code).length).toBeLessThan(600);
    expect(code).not.toContain("FinalizationRegistry");
  });
});

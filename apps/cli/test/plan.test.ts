import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { plan } from "@moba-js/snr";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { moba } from "./support.js";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moba-plan-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

describe("moba plan", () => {
  it("prints what the planner says, and draws it", async () => {
    const out = join(folder, "plan.html");
    const options = [
      "--tokens",
      "8192",
      "--dim",
      "128",
      "--separation",
      "1.5",
      "--recall",
      "0.9",
      "--heads",
      "2",
    ];
    const { code, stdout } = await moba("plan", ...options, "--out", out, "--json");
    expect(code).toBe(0);
    const expected = plan({ tokens: 8192, headDim: 128, separation: 1.5, targetRecall: 0.9, heads: 2 });
    expect(JSON.parse(stdout).entries).toEqual(JSON.parse(JSON.stringify(expected.entries)));
    const page = readFileSync(out, "utf8");
    expect(page).toContain("<svg");
    expect(page).not.toMatch(/<script|<link|<img|@import|\bsrc=/i);
  });

  it("takes the costs that bench cost measured", async () => {
    const cost = join(folder, "cost.json");
    const bench = await moba("bench", "cost", "--tokens", "1024", "--repeats", "1", "--out", cost, "--json");
    expect(bench.code).toBe(0);
    const measured = JSON.parse(readFileSync(cost, "utf8"));
    expect(JSON.parse(bench.stdout)).toMatchObject(measured);
    expect(measured.measurements).toHaveLength(15);
    const { code, stdout } = await moba("plan", "--cost", cost, "--json");
    expect(code).toBe(0);
    expect(JSON.parse(stdout).cost).toEqual(measured.cost);
  });

  it.each([
    ["[]", "has no number"],
    [
      '{"cost": {"secondsPerRoutingFlop": 1, "secondsPerAttentionFlop": -1}}',
      '"cost.secondsPerAttentionFlop"',
    ],
    ["{", "is no JSON"],
  ])("refuses a cost file of %s", async (content, reason) => {
    const path = join(folder, "bad.json");
    writeFileSync(path, content);
    const { code, stderr } = await moba("plan", "--cost", path);
    expect(code).toBe(2);
    expect(stderr).toContain(`${path}: `);
    expect(stderr).toContain(reason);
  });

  it.each([
    [["--recall", "1.5"], "targetRecall"],
    [["--separation", "-1"], "--separation"],
    [["--tokens", "0"], "--tokens"],
    [["--cost", "/nowhere/cost.json"], "/nowhere/cost.json"],
  ])("refuses %j, naming it", async (options, argument) => {
    const { code, stdout, stderr } = await moba("plan", ...options);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toContain(argument);
  });
});

describe("moba snr report", () => {
  it("refuses a place that cannot be written before it simulates", async () => {
    const { code, stderr } = await moba("snr", "report", "--out", folder);
    expect(code).toBe(2);
    expect(stderr).toContain(`${folder}: cannot be written`);
    expect(readdirSync(folder).some((name) => name.includes("tmp"))).toBe(false);
  });
});

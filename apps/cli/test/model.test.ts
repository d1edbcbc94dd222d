import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { moba } from "./support.js";

const scratch = mkdtempSync(join(tmpdir(), "moba-cli-model-"));
afterAll(() => rmSync(scratch, { recursive: true }));

const run = join(scratch, "run");
const small = [
  "--run",
  run,
  "--batch-tokens",
  "96",
  "--sequence-tokens",
  "96",
  "--save-every",
  "2",
  "--evaluate-every",
  "2",
];

describe("moba train, generate and eval", () => {
  it("train a model, go on with it, continue a prompt and evaluate it", async () => {
    const first = await moba("train", ...small, "--steps", "2", "--json");
    expect(first.code).toBe(0);
    expect(JSON.parse(first.stdout)).toMatchObject({ run, steps: 2, parameters: 201_536 });
    const second = await moba("train", ...small, "--steps", "4");
    expect(second.stderr).toMatch(/step 3, loss [\s\S]*step 4, loss/);
    expect(second.stderr).not.toContain("step 2,");
    const metrics = readFileSync(join(run, "metrics.jsonl"), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(metrics.map(({ step }) => step)).toEqual([1, 2, 3, 4]);
    expect(metrics[3].heldOutLoss).toBeGreaterThan(0);
    expect(existsSync(join(run, "loss.html"))).toBe(true);

    const generated = await moba("generate", "Call me", "--model", run, "--max-tokens", "5", "--json");
    expect(generated.code).toBe(0);
    expect(JSON.parse(generated.stdout)).toMatchObject({
      prompt: "Call me",
      model: join(run, "step-00000004"),
    });
    const printed = await moba("generate", "Call me", "--model", run, "--max-tokens", "5");
    expect(printed.stdout).toBe(`Call me${JSON.parse(generated.stdout).continuation}\n`);

    const out = join(scratch, "eval.html");
    const evaluation = await moba(
      "eval",
      "--model",
      run,
      "--tokens",
      "300",
      "--sequence-tokens",
      "300",
      "--out",
      out,
      "--json",
      "--needle",
      "s-niah-1",
      "--lengths",
      "500",
      "--depths",
      "0",
      "1",
    );
    expect(evaluation.stderr).toContain("needles 2/2");
    const { loss, needles, routing } = JSON.parse(evaluation.stdout);
    expect(loss.perplexity).toBeLessThan(300);
    expect(needles).toHaveLength(2);
    expect(routing).toHaveLength(4);
    expect(readFileSync(out, "utf8")).toContain("depth");
  });

  it("read JSONL, and refuse what is no model, no data or another run", async () => {
    const data = join(scratch, "data.jsonl");
    writeFileSync(
      data,
      Array.from({ length: 40 }, (_, i) => JSON.stringify({ body: `document ${i}` })).join("\n"),
    );
    const other = [
      "train",
      "--run",
      join(scratch, "jsonl"),
      "--data",
      data,
      "--steps",
      "1",
      "--batch-tokens",
      "32",
    ];
    expect((await moba(...other, "--field", "body")).code).toBe(0);
    const wrong = await moba(
      ...other.map((word) => (word.endsWith("jsonl") && word !== data ? `${word}2` : word)),
    );
    expect(wrong).toMatchObject({ code: 2, stderr: expect.stringContaining('field "text"') });
    expect(await moba("generate", "x", "--model", join(scratch, "nothing"))).toMatchObject({ code: 2 });
    const changed = await moba("train", ...small, "--steps", "4", "--attention", "dense");
    expect(changed).toMatchObject({ code: 2, stderr: expect.stringContaining("same config") });
  });
});

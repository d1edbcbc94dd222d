import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { expect, test, vi } from "vitest";

const source = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const examples = [...readFileSync(source("../README.md"), "utf8").matchAll(/```ts\n(.*?)```/gs)].map(
  ([, code]) => code,
);

/** Runs an example as a program of its own and returns what it printed. */
async function run(code: string): Promise<string> {
  const { outputFiles } = await build({
    stdin: { contents: code, resolveDir: source("."), loader: "ts" },
    alias: {
      "@moba-js/snr": source("../src/index.ts"),
      "@moba-js/tensor": source("../../tensor/src/index.ts"),
    },
    bundle: true,
    format: "esm",
    write: false,
  });
  const lines: string[] = [];
  const log = vi
    .spyOn(console, "log")
    .mockImplementation((...values) => lines.push(values.map(show).join(" ")));
  try {
    await import(`data:text/javascript,${encodeURIComponent(outputFiles[0].text)}`);
  } finally {
    log.mockRestore();
  }
  return lines.join("\n");
}

const show = (value: unknown) => (typeof value === "string" ? value : JSON.stringify(value));

test("the README's examples run and print what they promise", async () => {
  expect(examples).toHaveLength(3);
  const first = await run(examples[0]);
  const estimation = await run(examples[1]);
  const planning = await run(examples[2]);
  expect(first).toMatch(/^SNR 2\.50: the right block is attended with probability 0\.\d+/);
  expect(first.split("\n").length).toBeGreaterThan(5);
  const [, low, high] = estimation.match(/"low":([\d.]+),"high":([\d.]+)/)!.map(Number);
  expect(low).toBeLessThan(3);
  expect(high).toBeGreaterThan(3);
  expect(JSON.parse(planning).recall).toBeGreaterThanOrEqual(0.9);
});

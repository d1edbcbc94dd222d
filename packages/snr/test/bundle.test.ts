import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { expect, test } from "vitest";

const source = (path: string) => fileURLToPath(new URL(path, import.meta.url));

/** Everything a browser needs to run `code`, which may import from "snr": minified, from the library as it is published. */
async function bundle(code: string): Promise<string> {
  // As tsup does: one module a package, unshaken.
  const library = await build({
    entryPoints: [source("../src/index.ts")],
    alias: { "@moba-js/tensor": source("../../tensor/src/index.ts") },
    bundle: true,
    format: "esm",
    platform: "browser",
    write: false,
  });
  const result = await build({
    stdin: { contents: code, resolveDir: source(".") },
    plugins: [
      {
        name: "published-snr",
        setup({ onResolve, onLoad }) {
          onResolve({ filter: /^snr$/ }, () => ({ path: "snr", namespace: "published", sideEffects: false }));
          onLoad({ filter: /.*/, namespace: "published" }, () => ({ contents: library.outputFiles[0].text }));
        },
      },
    ],
    bundle: true,
    minify: true,
    format: "esm",
    platform: "browser",
    write: false,
  });
  return result.outputFiles[0].text;
}

const kilobytes = (code: string) => gzipSync(code, { level: 9 }).length / 1000;

const CLOSED_FORMS = [
  "binomialInterval",
  "blockSizeForRecall",
  "effectiveSeparation",
  "headDimForRecall",
  "hitProbability",
  "logNormalCdf",
  "meetsTopKCondition",
  "missProbability",
  "normalCdf",
  "normalQuantile",
  "pairwiseFailure",
  "requiredSnr",
  "separationForRecall",
  "slotsForRecall",
  "snr",
  "snrForRecall",
];

test("the closed forms alone take at most 15 kB gzip, the simulator left out", async () => {
  const code = await bundle(`export { ${CLOSED_FORMS.join(", ")} } from "snr";`);
  console.log(`closed forms: ${kilobytes(code).toFixed(1)} kB gzip`);
  expect(kilobytes(code)).toBeLessThanOrEqual(15);
  expect(code).not.toContain("svg");
});

test("a browser bundle of everything holds no Node import, and runs", async () => {
  const code = await bundle(`export * from "snr";`);
  console.log(`whole package: ${kilobytes(code).toFixed(1)} kB gzip`);
  expect(code).not.toMatch(/["']node:|require\(|\bprocess\b|\bBuffer\b|__dirname/);
  const library = await import(`data:text/javascript,${encodeURIComponent(code)}`);
  expect(library.snr({ headDim: 128, blockSize: 64, separation: 1 })).toBe(1);
});

test("nothing in the sources depends on the time or on unseeded randomness", () => {
  for (const file of readdirSync(source("../src"))) {
    const text = readFileSync(source(`../src/${file}`), "utf8");
    expect(text, file).not.toMatch(/Math\.random|Date\b|performance/);
  }
});

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { transformSync } from "esbuild";
import { expect, it } from "vitest";

const packages = fileURLToPath(new URL("../packages/", import.meta.url));

it.each(["tensor", "reference", "snr", "conformance", "model", "cuda", "webgpu", "moba-js"])(
  "the first example of %s/README.md runs",
  (name) => {
    const readme = readFileSync(join(packages, name, "README.md"), "utf8");
    const example = readme.match(/```ts\n([\s\S]*?)```/)?.[1];
    expect(example).toBeDefined();
    // Inside the package, so that its own name and its dependencies resolve as they do for a user.
    const folder = mkdtempSync(join(packages, name, "example-"));
    try {
      const file = join(folder, "example.mjs");
      writeFileSync(file, transformSync(example as string, { loader: "ts", target: "node20" }).code);
      const { status, stderr, stdout } = spawnSync(process.execPath, [file], { encoding: "utf8" });
      expect(status, stderr).toBe(0);
      // Node's warnings; what a graphics driver has to say there is its own affair.
      expect(stderr).not.toMatch(/^\(node:/m);
      expect(stdout).not.toBe("");
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
);

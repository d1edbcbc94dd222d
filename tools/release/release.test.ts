import { execFileSync } from "node:child_process";
import { appendFileSync, cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { apiReport, checkApi } from "./api.mjs";
import { checkExports, checkImports, checkSize } from "./checks.mjs";
import { requireCleanTree } from "./release.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const temp = mkdtempSync(join(tmpdir(), "moba-js-checks-"));
afterAll(() => rmSync(temp, { recursive: true, force: true }));

interface Packed {
  /** The unpacked package. */
  readonly dir: string;
  /** Packs it as it is now. */
  tarball(): string;
}

let copies = 0;
/** A copy of the packed `@moba-js/tensor`, to break. */
function copy(): Packed {
  const parent = join(temp, `copy-${++copies}`);
  cpSync(join(temp, "package"), join(parent, "package"), { recursive: true });
  return {
    dir: join(parent, "package"),
    tarball: () => {
      execFileSync("tar", ["czf", "packed.tgz", "package"], { cwd: parent });
      return join(parent, "packed.tgz");
    },
  };
}

beforeAll(() => {
  const file = join(temp, "tensor.tgz");
  const pnpm = join(root, "node_modules", ".bin", "pnpm");
  execFileSync(pnpm, ["pack", "--out", file], { cwd: join(root, "packages", "tensor"), stdio: "pipe" });
  execFileSync("tar", ["xzf", file], { cwd: temp });
});

describe("the checks of a packed package", () => {
  it("find nothing wrong with a package that is right", async () => {
    const { dir, tarball } = copy();
    expect(await checkExports(tarball())).toEqual([]);
    expect(checkImports(dir)).toEqual([]);
    expect(await checkSize(tarball(), dir)).toEqual([]);
  });

  it("find a broken exports map", async () => {
    const { dir, tarball } = copy();
    const file = join(dir, "package.json");
    const manifest = JSON.parse(readFileSync(file, "utf8"));
    manifest.exports["."].require = manifest.exports["."].import; // an ES module for require
    writeFileSync(file, JSON.stringify(manifest));
    expect((await checkExports(tarball())).join("\n")).toMatch(/attw: CJSResolvesToESM/);
  });

  it("find a missing file", async () => {
    const { dir, tarball } = copy();
    rmSync(join(dir, "dist", "index.cjs"));
    expect((await checkExports(tarball())).join("\n")).toMatch(
      /publint: .*index\.cjs but the file does not exist/,
    );
  });

  it.each([
    ["code", "index.js", `import "pure-rand";`],
    ["CommonJS", "index.cjs", `require("pure-rand");`],
    ["declarations", "index.d.ts", `import type { RandomGenerator } from "pure-rand";`],
  ])("find a dev dependency that leaks into the %s", (_, file, line) => {
    const { dir } = copy();
    appendFileSync(join(dir, "dist", file), `\n${line}\n`);
    expect(checkImports(dir)).toEqual([`dist/${file} imports pure-rand, which is no dependency`]);
  });

  it("find a range that only the workspace understands", () => {
    const { dir } = copy();
    const file = join(dir, "package.json");
    const manifest = JSON.parse(readFileSync(file, "utf8"));
    writeFileSync(file, JSON.stringify({ ...manifest, dependencies: { "@moba-js/snr": "workspace:^" } }));
    expect(checkImports(dir)).toEqual(["@moba-js/snr has the range workspace:^"]);
  });

  it("find a package over its size budget, and one without a budget", async () => {
    const { dir, tarball } = copy();
    const budgets = { "@moba-js/tensor": { packed: 10, entry: 1e6 } };
    expect((await checkSize(tarball(), dir, budgets)).join()).toMatch(
      /packed has \d+ bytes, the budget is 10$/,
    );
    expect((await checkSize(tarball(), dir, {})).join()).toMatch(/has no size budget/);
  });
});

describe("the API report", () => {
  it("does not change with comments", () => {
    const { dir } = copy();
    const before = apiReport(dir);
    const file = join(dir, "dist", "index.d.ts");
    writeFileSync(file, readFileSync(file, "utf8").replaceAll("/**", "/** More:"));
    expect(apiReport(dir)).toBe(before);
  });

  it("finds a changed and a missing export, and says what to run", () => {
    const { dir } = copy();
    const file = join(temp, "tensor.api.md");
    writeFileSync(file, apiReport(dir));
    expect(checkApi(dir, file)).toBe("");

    const declarations = join(dir, "dist", "index.d.ts");
    const before = readFileSync(declarations, "utf8");
    writeFileSync(declarations, before.replace(/(toBF16Bits\()\w+: number/, "$1value: string"));
    expect(checkApi(dir, file)).toMatch(/review the change: npm run api[\s\S]*\+ .*value: string/);
    writeFileSync(declarations, before.replace(/, toBF16Bits\b/, ""));
    expect(checkApi(dir, file)).toMatch(/- .*toBF16Bits/);
  });
});

it("a release refuses a dirty tree", () => {
  const dir = mkdtempSync(join(temp, "tree-"));
  execFileSync("git", ["init", "--quiet"], { cwd: dir });
  expect(() => requireCleanTree(dir)).not.toThrow();
  writeFileSync(join(dir, "new.txt"), "");
  expect(() => requireCleanTree(dir)).toThrow("not clean");
});

import { execFile, execFileSync } from "node:child_process";
import { appendFileSync, cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { apiReport, checkApi } from "./api.mjs";
import { checkExports, checkFiles, checkImports, checkSize } from "./checks.mjs";
import { provenance, requireCleanTree } from "./release.mjs";
import { copyWorkspace, publicPackages, repositoryOf, stage } from "./stage.mjs";

const root = fileURLToPath(new URL("../..", import.meta.url));
const temp = mkdtempSync(join(tmpdir(), "moba-js-checks-"));
/** Generous: files are many, and machines slow. */
const FIVE_MINUTES = 300_000;
afterAll(() => rmSync(temp, { recursive: true, force: true }), FIVE_MINUTES);

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
}, FIVE_MINUTES);

describe("the checks of a packed package", () => {
  it("find nothing wrong with a package that is right", async () => {
    const { dir, tarball } = copy();
    expect(await checkExports(tarball())).toEqual([]);
    expect(checkFiles(dir)).toEqual([]);
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

  it("find what every package has and this one does not", () => {
    const { dir } = copy();
    const { license, ...manifest } = JSON.parse(readFileSync(join(dir, "package.json"), "utf8"));
    expect(license).toBe("MIT");
    writeFileSync(join(dir, "package.json"), JSON.stringify(manifest));
    for (const name of ["LICENSE", join("dist", "index.js.map")]) rmSync(join(dir, name));
    expect(checkFiles(dir)).toEqual(["no license in package.json", "no LICENSE", "no dist/index.js.map"]);
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
    expect((await checkSize(tarball(), dir, {})).join()).toMatch(/no size budget/);
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

describe("a rehearsal", () => {
  /** Rehearses a copy of the workspace that `damage` was done to. */
  async function rehearse(damage: (workspace: string) => void) {
    const workspace = mkdtempSync(join(temp, "workspace-"));
    copyWorkspace(workspace);
    damage(workspace);
    const rehearsal = join(workspace, "tools", "release", "rehearse.mjs");
    return promisify(execFile)(process.execPath, [rehearsal]).then(
      ({ stdout }) => ({ code: 0, stdout }),
      ({ code, stdout }: { code: number; stdout: string }) => ({ code, stdout }),
    );
  }

  it.each([
    [
      "a broken exports map",
      (workspace: string) => {
        const file = join(workspace, "packages", "tensor", "package.json");
        const manifest = JSON.parse(readFileSync(file, "utf8"));
        manifest.exports["."].require = manifest.exports["."].import;
        writeFileSync(file, JSON.stringify(manifest));
      },
      /what is packed.*FAILED[\s\S]*@moba-js\/tensor: attw: CJSResolvesToESM/,
    ],
    [
      "a missing file",
      (workspace: string) => rmSync(join(workspace, "packages", "snr", "dist", "index.cjs")),
      /what is packed.*FAILED[\s\S]*@moba-js\/snr: publint: .*index\.cjs but the file does not exist/,
    ],
    [
      "a leaked dev dependency",
      (workspace: string) => {
        const file = join(workspace, "packages", "reference", "dist", "index.js");
        appendFileSync(file, `\nimport "fast-check";\n`);
      },
      /what is packed.*FAILED[\s\S]*@moba-js\/reference: dist\/index\.js imports fast-check, which is no dependency/,
    ],
    [
      "an unreviewed change of an API",
      (workspace: string) => {
        const file = join(workspace, "packages", "webgpu", "dist", "index.d.ts");
        appendFileSync(file, "\nexport declare const unreviewed: number;\n");
      },
      /public APIs.*FAILED[\s\S]*@moba-js\/webgpu: its public API is not the reviewed one[\s\S]*unreviewed: number/,
    ],
  ])(
    "fails at %s, before anything is published",
    async (_, damage, said) => {
      const { code, stdout } = await rehearse(damage);
      expect(stdout).toMatch(said);
      expect(stdout).toContain("Nothing is released");
      expect(code).toBe(1);
    },
    FIVE_MINUTES,
  );
});

describe("a release", () => {
  /** A git repository; `origin` is its remote. */
  function repository(origin?: string): string {
    const dir = mkdtempSync(join(temp, "repository-"));
    execFileSync("git", ["init", "--quiet"], { cwd: dir });
    if (origin) execFileSync("git", ["remote", "add", "origin", origin], { cwd: dir });
    return dir;
  }

  it("refuses a dirty tree", () => {
    const dir = repository();
    expect(() => requireCleanTree(dir)).not.toThrow();
    writeFileSync(join(dir, "new.txt"), "");
    expect(() => requireCleanTree(dir)).toThrow("not clean");
  });

  it.each([
    ["git@github.com:someone/moba-js.git", "git+https://github.com/someone/moba-js.git"],
    ["https://someone:secret@github.com/someone/moba-js", "git+https://github.com/someone/moba-js.git"],
    ["ssh://git@gitlab.com/a/group/moba-js.git", "git+https://gitlab.com/a/group/moba-js.git"],
    ["/srv/git/moba-js.git", undefined],
    [undefined, undefined],
  ])("of a clone of %s names %s", (origin, url) => {
    expect(repositoryOf(repository(origin))?.url).toBe(url);
  });

  it("proves where it was built, where that can be", () => {
    const [known, unknown] = [repository("https://github.com/someone/moba-js"), repository("/srv/moba-js")];
    const actions = { ACTIONS_ID_TOKEN_REQUEST_URL: "https://token.example" };
    expect(provenance(known, actions)).toEqual(["--provenance"]);
    expect(provenance(known, { GITLAB_CI: "true", SIGSTORE_ID_TOKEN: "token" })).toEqual(["--provenance"]);
    expect(provenance(known, {})).toEqual([]);
    expect(provenance(unknown, {})).toEqual([]);
    expect(() => provenance(unknown, actions)).toThrow("public address");
  });

  it("writes the repository's address into every package", () => {
    const [dir, staged] = [
      repository("https://github.com/someone/moba-js"),
      mkdtempSync(join(temp, "staged-")),
    ];
    copyWorkspace(dir);
    stage(staged, dir);
    const addresses = publicPackages(staged).map(({ manifest }) => manifest.repository);
    const url = "git+https://github.com/someone/moba-js.git";
    expect(addresses).toContainEqual({ type: "git", url, directory: "packages/tensor" });
    expect(addresses).toContainEqual({ type: "git", url, directory: "apps/cli" });
    expect(addresses).not.toContain(undefined);
  });
});

it("CUDA builds as far as the compilers go, and says how far", () => {
  const copied = mkdtempSync(join(temp, "cuda-"));
  for (const name of ["addon", "kernels", "tools", "package.json"]) {
    cpSync(join(root, "packages", "cuda", name), join(copied, name), { recursive: true });
  }
  const build = (name: string) =>
    execFileSync(process.execPath, [join(copied, "tools", name)], { env: { PATH: "" }, encoding: "utf8" });
  expect(build("addon.mjs")).toMatch(/^addon: not built: (it is for Linux|node-gyp needs Python)/);
  expect(build("kernels.mjs")).toMatch(/^kernels: not compiled: there is no nvcc/);
});

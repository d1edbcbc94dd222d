// A rehearsal of a release: packs every package and checks what is packed, then releases to a registry on this machine and does
// what users do, each package alone in an empty folder; then releases again, and updates. Needs built packages. `--keep` keeps
// its folder.
import { spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkApi, withApi } from "./api.mjs";
import { bundleAndBrowse } from "./browser.mjs";
import { checkExports, checkFiles, checkImports, checkSize } from "./checks.mjs";
import { reachesRegistry, startRegistry } from "./registry.mjs";
import { builtPlatforms, copyWorkspace, pack, publicPackages, readJson, stage } from "./stage.mjs";
import { assert, failures, inPairs, run, step } from "./steps.mjs";
import {
  compileExample,
  copyExamples,
  emptyProject,
  installed,
  readmeOf,
  runExamples,
  userEnvironment,
} from "./users.mjs";

/** The most packages that an install may bring, itself included. */
const MOST_PACKAGES = { "@moba-js/tensor": 1, "@moba-js/snr": 2, "@moba-js/webgpu": 3 };
/** From an empty folder to what the first example prints. */
const MOST_SECONDS = 120;

const temp = mkdtempSync(join(tmpdir(), "moba-js-rehearsal-"));
const project = (name) => emptyProject(join(temp, "projects", name.replace("/", "-")));

/** Packs the workspace and checks what is packed. */
async function checkPackages() {
  const staged = join(temp, "staged");
  let packages = [];
  await step("stage the workspace and pack", () => {
    stage(staged);
    packages = pack(staged, join(temp, "tarballs"));
    const [platform] = builtPlatforms();
    return platform ? `with @moba-js/cuda-${platform}` : "without binaries of @moba-js/cuda: not built here";
  });
  await step("what is packed: exports and types (publint, attw), files, imports, sizes", async () => {
    const problems = [];
    for (const { name, tarball } of packages) {
      const dir = join(temp, "unpacked", name);
      mkdirSync(dir, { recursive: true });
      await run("tar", ["xzf", tarball, "-C", dir, "--strip-components=1"], { cwd: temp });
      const found = [await checkExports(tarball), checkFiles(dir), checkImports(dir)].flat();
      if (found.length === 0) found.push(...(await checkSize(tarball, dir))); // bundles, so imports must be right
      problems.push(...found.map((problem) => `${name}: ${problem}`));
    }
    assert(problems.length === 0, problems.join("\n"));
  });
  await step("public APIs are the reviewed ones", () => {
    const problems = withApi().map(({ dir }) => checkApi(dir));
    const found = problems.filter((problem) => problem !== "");
    assert(found.length === 0, found.join("\n"));
  });
}

/** A git repository with the workspace, where releases are made. */
async function repository() {
  const dir = join(temp, "repository");
  copyWorkspace(dir);
  await run("git", ["init", "--quiet", "--initial-branch=main"], { cwd: dir });
  const settings = {
    "user.name": "Rehearsal",
    "user.email": "rehearsal@localhost",
    "commit.gpgsign": "false",
  };
  for (const setting of Object.entries(settings)) await run("git", ["config", ...setting], { cwd: dir });
  await commit(dir, "all");
  return dir;
}

async function commit(dir, message) {
  await run("git", ["add", "--all"], { cwd: dir });
  await run("git", ["commit", "--quiet", "-m", message], { cwd: dir });
}

/** Releases the repository in `dir` to the registry of `env`, as `npm run release` does; the tests are not run again. */
async function release(dir, env) {
  const module = JSON.stringify(new URL("release.mjs", import.meta.url));
  const code = `import { release } from ${module}; release(process.cwd(), () => {});`;
  await run(process.execPath, ["--input-type=module", "-e", code], {
    cwd: dir,
    env: { ...env, PATH: process.env.PATH },
    warnings: true,
  });
  const { version } = publicPackages(dir)[0];
  const tags = await run("git", ["tag", "--points-at", "HEAD"], { cwd: dir });
  assert(tags.trim() === `v${version}`, `the release is not tagged v${version}: ${tags}`);
  assert(!spawnSync("git", ["status", "--porcelain"], { cwd: dir, encoding: "utf8" }).stdout, "not clean");
  return version;
}

/** Installs a library alone, as its README says, and runs its example: first with npm, then with pnpm. */
async function tryLibrary(library, env) {
  const { name } = library;
  const readme = readmeOf(library);
  const dir = project(`npm-${name}`);
  const compiled = await step(`npm: ${name} alone`, async () => {
    assert(readme.example, "no example in its README");
    const start = Date.now();
    await run("npm", ["install", ...readme.names], { cwd: dir, env });
    const { length } = installed(dir);
    const most = MOST_PACKAGES[name] ?? Number.POSITIVE_INFINITY;
    assert(length <= most, `${length} packages instead of ${most}: ${installed(dir).join(", ")}`);
    const installTime = Date.now() - start;
    await compileExample(dir, readme);
    const running = Date.now();
    const printed = await runExamples(dir, env);
    const seconds = (installTime + Date.now() - running) / 1000;
    assert(seconds < MOST_SECONDS, `from an empty folder to its output it takes ${seconds} s`);
    const isCuda = name === "@moba-js/cuda";
    const binaries = builtPlatforms().includes(`${process.platform}-${process.arch}`);
    assert(!isCuda || !binaries || !printed.includes("no addon"), `the addon is not found:\n${printed}`);
    return `${length} package${length > 1 ? "s" : ""}; example in ESM, CommonJS and TypeScript, ${seconds.toFixed(1)} s from an empty folder`;
  });
  if (!compiled) return;
  await step(`pnpm: ${name} alone`, async () => {
    const other = project(`pnpm-${name}`);
    await run("pnpm", ["add", ...readme.names], { cwd: other, env });
    copyExamples(dir, other);
    await runExamples(other, env);
  });
}

/** Installs the command alone and runs it. */
async function tryCommand(command, env) {
  const { names } = readmeOf(command);
  const tryMoba = async (moba, cwd) => {
    assert(/cpu/.test(await run(moba, ["doctor"], { cwd, env })), "no cpu backend");
    const found = await run(moba, ["find", "the whiteness of the whale"], { cwd, env });
    assert(found.includes("Chapter 42. The Whiteness of The Whale"), found);
  };
  await step("npm: @moba-js/cli alone", async () => {
    const dir = project("npm-cli");
    await run("npm", ["install", "--global", "--prefix", dir, ...names], { cwd: dir, env });
    await tryMoba(join(dir, "bin", "moba"), dir);
  });
  await step("pnpm: @moba-js/cli alone", async () => {
    const dir = project("pnpm-cli");
    await run("pnpm", ["add", ...names], { cwd: dir, env });
    await tryMoba(join(dir, "node_modules", ".bin", "moba"), dir);
  });
}

/** Builds the addon and a kernel of an installed `@moba-js/cuda`, as on a platform without binaries. */
async function buildCuda(env) {
  const needed = ["g++", "make", "python3"];
  const missing = needed.filter((name) => spawnSync("which", [name]).status !== 0);
  if (missing.length > 0) return `not built: no ${missing.join(", ")} here`;
  const dir = project("cuda-from-source");
  const builder = { ...env, PATH: process.env.PATH };
  const names = ["@moba-js/cuda", "node-gyp@12", "node-addon-api@8"];
  await run("npm", ["install", "--omit=optional", ...names], { cwd: dir, env });
  const tools = join(dir, "node_modules", "@moba-js", "cuda", "tools");
  const addon = await run(process.execPath, [join(tools, "addon.mjs")], { cwd: dir, env: builder });
  const kernels = await run(process.execPath, [join(tools, "kernels.mjs"), "advance"], {
    cwd: dir,
    env: builder,
  });
  copyExamples(join(temp, "projects", "npm-@moba-js-cuda"), dir);
  const printed = await runExamples(dir, env);
  assert(!printed.includes("no addon"), `the addon is not found:\n${addon}${printed}`);
  return kernels.trim().split("\n").at(-1);
}

/** A patch by a changeset, released; then an installed project is updated. */
async function releaseAgain(dir, env) {
  const before = publicPackages(dir)[0].version;
  writeFileSync(join(dir, ".changeset", "patch.md"), `---\n"@moba-js/tensor": patch\n---\n\nA patch.\n`);
  const refused = await release(dir, env).then(() => "", String);
  assert(refused.includes("not clean"), `a dirty tree is released: ${refused}`);
  await commit(dir, "fix: a patch");
  const version = await release(dir, env);
  assert(version !== before, `the version is still ${version}`);
  const left = publicPackages(dir).filter((found) => found.version !== version);
  assert(left.length === 0, `not moved: ${left.map(({ name }) => name).join(", ")}`);
  const changelog = readFileSync(join(dir, "packages", "tensor", "CHANGELOG.md"), "utf8");
  assert(changelog.includes(`## ${version}\n\n### Patch Changes\n\n- A patch.\n`), changelog);

  const app = join(temp, "projects", "npm-moba-js");
  await run("npm", ["update"], { cwd: app, env });
  const { packages } = readJson(join(app, "package-lock.json"));
  const old = Object.keys(packages).filter(
    (path) => /node_modules\/(@moba-js\/[^/]+|moba-js)$/.test(path) && packages[path].version !== version,
  );
  assert(old.length === 0, `not updated: ${old.join(", ")}`);
  await runExamples(app, env);
  return `${before} to ${version}`;
}

/** Releases to a registry of its own, and is its user. */
async function releaseAndUse() {
  const dir = await repository();
  let env;
  const released = await step("start a registry and release to it", async () => {
    const registry = await startRegistry(join(temp, "registry"));
    env = userEnvironment(temp, registry.url);
    return `version ${await release(dir, env)}`;
  });
  if (!released) return;

  const packages = publicPackages(dir);
  const library = (name) => packages.find((found) => found.name === name);
  const others = packages.filter(({ name, manifest }) => name !== "moba-js" && manifest.exports?.["."]);
  await inPairs([
    () => tryLibrary(library("moba-js"), env),
    () => tryCommand(library("@moba-js/cli"), env),
    () => step("Vite bundles, run in Chromium", () => bundleAndBrowse(project("web"), env)),
    ...others.map((found) => () => tryLibrary(found, env)),
  ]);
  await step("@moba-js/cuda from source", () => buildCuda(env));
  await step("release a patch, update an installed project", () => releaseAgain(dir, env));
}

const start = Date.now();
if (process.argv.includes("--keep")) console.log(`keeps ${temp}`);
// By a process of its own: there are some 25,000 files, and nobody has to wait for that.
else process.once("exit", () => spawn("rm", ["-rf", temp], { detached: true, stdio: "ignore" }).unref());

await checkPackages();
if (failures.length > 0) console.log("Nothing is released: what is packed is not right.");
else if (!process.env.CI && !reachesRegistry()) console.log("skipped: the rest, there is no network");
else await releaseAndUse();

console.log(`${failures.length === 0 ? "ok" : "FAILED"}, ${Math.round((Date.now() - start) / 1000)} s`);
for (const failure of failures) console.log(`failed: ${failure}`);
process.exit(failures.length === 0 ? 0 : 1); // which stops the registry

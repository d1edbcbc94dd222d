// A rehearsal of a release: packs every package, checks what is packed, publishes it to a registry on this machine, and
// then does what users do, each package alone in an empty folder. `--keep` keeps the folder. Needs built packages.
import { execFile, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { promisify } from "node:util";
import { transformSync } from "esbuild";
import { chromium } from "playwright-core";
import { checkApi, withApi } from "./api.mjs";
import { checkExports, checkImports, checkSize } from "./checks.mjs";
import { startRegistry } from "./registry.mjs";
import { bump, pack, readJson, root, stage, tool, writeJson } from "./stage.mjs";

/** The most packages that an install may bring, itself included. */
const MOST_PACKAGES = { "@moba-js/tensor": 1, "@moba-js/snr": 2, "@moba-js/webgpu": 3 };
const IN_BROWSERS = ["@moba-js/tensor", "@moba-js/reference", "@moba-js/snr", "@moba-js/webgpu", "moba-js"];

const temp = mkdtempSync(join(tmpdir(), "moba-js-rehearsal-"));
const staged = join(temp, "workspace");
/** The environment of a user who has nothing set up. */
const env = {
  ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^p?npm_/i.test(name))),
  NPM_CONFIG_USERCONFIG: join(temp, "npmrc"),
  NPM_CONFIG_CACHE: join(temp, "npm-cache"),
  XDG_CACHE_HOME: join(temp, "cache"),
  XDG_DATA_HOME: join(temp, "data"),
  XDG_STATE_HOME: join(temp, "state"),
};

/** Runs a program to its end; throws what it said when it fails, or warns. */
function run(command, args, cwd, { warnings = false } = {}) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, env, encoding: "utf8" });
  const said = `${stdout ?? ""}${stderr ?? ""}${error ?? ""}`.trim();
  if (status !== 0) throw new Error(`${[command, ...args].join(" ")} (in ${cwd})\n${said}`);
  if (!warnings && stderr.trim()) throw new Error(`${[command, ...args].join(" ")} warns:\n${stderr.trim()}`);
  return stdout;
}

const assert = (condition, message) => {
  if (!condition) throw new Error(message);
};

let count = 0;
const failures = [];

/** One numbered step; it may return a remark. Later steps go on without it, where `needed` is false. */
async function step(name, action, { needed = false } = {}) {
  const start = Date.now();
  const label = `${String(++count).padStart(2)}. ${name}`;
  try {
    const remark = await action();
    console.log(`${label}: ok${remark ? `, ${remark}` : ""} (${((Date.now() - start) / 1000).toFixed(1)} s)`);
  } catch (error) {
    const lines = String(error.message).split("\n");
    const shown = lines.length > 30 ? [...lines.slice(0, 30), `… ${lines.length - 30} lines more`] : lines;
    console.log(`${label}: FAILED\n${shown.map((line) => `      ${line}`).join("\n")}`);
    failures.push(label.trim());
    if (needed) throw error;
  }
}

/** An empty project of a user. */
function project(name) {
  const dir = join(temp, "projects", name.replace("/", "-"));
  mkdirSync(dir, { recursive: true });
  writeJson(join(dir, "package.json"), { name: "app", version: "1.0.0", private: true });
  return dir;
}

/** What the README says to install, and its first example. */
function readmeOf({ dir, name }) {
  const readme = readFileSync(join(dir, "README.md"), "utf8");
  const install =
    readme
      .match(/^npm install ([^#\n]+)/m)?.[1]
      .trim()
      .split(/\s+/) ?? [];
  const example = readme.match(/```(?:ts|js)\n([\s\S]*?)```/)?.[1];
  return { names: install.filter((word) => !word.startsWith("-")), example, name };
}

const installed = (dir) => Object.keys(readJson(join(dir, "node_modules", ".package-lock.json")).packages);

/** An example of ES modules as CommonJS: imports become requires, the rest an async function. */
function toCommonJs(code) {
  const requires = [];
  const body = code.replace(/^import\s*\{([^}]*)\}\s*from\s*("[^"]+");$/gm, (_, names, from) => {
    requires.push(`const {${names.replaceAll(" as ", ": ")}} = require(${from});`);
    return "";
  });
  assert(!/^import\b/m.test(body), "the example has imports that are not of names");
  return `${requires.join("\n")}\n(async () => {\n${body}\n})();\n`;
}

/** Runs the README's example in `dir` as an ES module and as CommonJS, side by side; returns what it prints. */
async function runExample(dir, { example }) {
  const { code } = transformSync(example, { loader: "ts", target: "node20" });
  writeFileSync(join(dir, "example.mjs"), code);
  writeFileSync(join(dir, "example.cjs"), toCommonJs(code));
  const runs = ["example.mjs", "example.cjs"].map(async (file) => {
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [file], { cwd: dir, env });
    assert(!stderr, `${file} warns:\n${stderr}`);
    assert(stdout.trim(), `${file} prints nothing`);
    return stdout;
  });
  return (await Promise.all(runs)).join("");
}

/** Type-checks the README's example, a require of the package, and its declarations. */
function checkTypes(dir, { name, example }) {
  writeFileSync(join(dir, "example.mts"), example);
  writeFileSync(join(dir, "main.cts"), `import all = require("${name}");\nconsole.log(Object.keys(all));\n`);
  writeJson(join(dir, "tsconfig.json"), {
    compilerOptions: {
      module: "nodenext",
      target: "es2022",
      lib: ["es2023", "esnext.disposable", "dom"],
      strict: true,
      noEmit: true,
      types: ["node"],
      typeRoots: [join(root, "node_modules", "@types")],
    },
    files: ["example.mts", "main.cts"],
  });
  // Declarations of other packages are checked too, but what is wrong there is not for us to fail on.
  const { stdout } = spawnSync(tool("tsc"), ["-p", ".", "--pretty", "false"], {
    cwd: dir,
    env,
    encoding: "utf8",
  });
  const isOthers = (line) => /^[^(]*node_modules\/(?!@moba-js\/|moba-js\/)[^(]*\(\d/.test(line);
  const errors = stdout.split("\n").filter((line) => /error TS/.test(line) && !isOthers(line));
  assert(errors.length === 0, errors.join("\n"));
}

function publish(packages) {
  for (const { tarball } of packages) {
    run("npm", ["publish", tarball, "--access", "public", "--loglevel=error"], temp, { warnings: true });
  }
  return `${packages.length} packages, version ${packages[0].version}`;
}

/** Serves a folder; returns its address. */
function serve(dir) {
  const types = { ".html": "text/html", ".js": "text/javascript" };
  const server = createServer((request, response) => {
    const file = join(dir, request.url === "/" ? "index.html" : request.url);
    if (!existsSync(file)) return response.writeHead(404).end();
    response.writeHead(200, { "content-type": types[extname(file)] ?? "text/plain" }).end(readFileSync(file));
  });
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () =>
      resolve({ url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() }),
    );
  });
}

const PAGE = `
import { cuSeqlensFromLengths } from "@moba-js/tensor";
import { ReferenceBackend } from "@moba-js/reference";
import { snr } from "@moba-js/snr";
import { openWebGpu } from "@moba-js/webgpu";
import { openBackend } from "moba-js";

const attend = async (backend) => {
  const x = backend.tensor(Float32Array.from({ length: 64 * 8 }, Math.random), [64, 1, 8]);
  return (await backend.moba(x, x, x, { blockSize: 16, topK: 2 }).out.data()).length;
};
globalThis.results = async () => ({
  tensor: cuSeqlensFromLengths([3, 5]).join(),
  snr: snr({ headDim: 128, blockSize: 64, separation: 1 }),
  reference: await attend(new ReferenceBackend()),
  umbrella: await attend(await openBackend("cpu")),
  webgpu: await openWebGpu().then(attend, (error) => error.name),
});`;

async function bundleAndBrowse() {
  const browser =
    process.env.CHROMIUM ??
    spawnSync("which", ["chromium", "google-chrome"], { encoding: "utf8" }).stdout.split("\n")[0];
  assert(browser || !process.env.CI, "no Chromium found (install one, or name it in CHROMIUM)");
  const dir = project("web");
  run("npm", ["install", "--save-dev", "vite@8", ...IN_BROWSERS], dir);
  writeFileSync(join(dir, "index.html"), `<script type="module" src="/main.js"></script>`);
  writeFileSync(join(dir, "main.js"), PAGE);
  run(join(dir, "node_modules", ".bin", "vite"), ["build"], dir);
  if (!browser) return "bundled; not run: no Chromium found (install one, or name it in CHROMIUM)";

  const server = await serve(join(dir, "dist"));
  const instance = await chromium.launch({ executablePath: browser, args: ["--no-sandbox"] });
  try {
    const page = await instance.newPage();
    const errors = [];
    page.on("pageerror", (error) => errors.push(error.message));
    await page.goto(server.url);
    const { webgpu, ...others } = await page.evaluate("results()");
    const expected = { tensor: "0,3,8", snr: 1, reference: 512, umbrella: 512 };
    assert(JSON.stringify(others) === JSON.stringify(expected), JSON.stringify({ others, expected }));
    assert(webgpu === 512 || webgpu === "DeviceError", `webgpu: ${webgpu}`);
    assert(errors.length === 0, errors.join("\n"));
    return webgpu === 512 ? "WebGPU too" : "no WebGPU device in this browser, and it says so";
  } finally {
    await instance.close();
    server.close();
  }
}

async function rehearse() {
  let packages = [];
  await step(
    "stage the workspace, bump versions by the changesets, pack",
    () => {
      mkdirSync(staged);
      stage(staged);
      bump(staged);
      packages = pack(staged, join(temp, "tarballs"));
      const platform = packages.find(({ name }) => name.startsWith("@moba-js/cuda-"));
      return platform ? `with ${platform.name}` : "without a prebuilt package for CUDA: it is not built here";
    },
    { needed: true },
  );
  await step("what is packed: exports and types (publint, attw), imports, sizes", async () => {
    const problems = [];
    for (const { name, tarball } of packages) {
      const dir = join(temp, "unpacked", name);
      mkdirSync(dir, { recursive: true });
      run("tar", ["xzf", tarball, "-C", dir, "--strip-components=1"], temp);
      const found = [await checkExports(tarball), checkImports(dir), await checkSize(tarball, dir)].flat();
      problems.push(...found.map((problem) => `${name}: ${problem}`));
    }
    assert(problems.length === 0, problems.join("\n"));
  });
  await step("public APIs are the reviewed ones", () => {
    const problems = withApi().map(({ dir }) => checkApi(dir));
    assert(
      problems.every((problem) => problem === ""),
      problems.filter(Boolean).join("\n"),
    );
  });

  let registry;
  await step(
    "start a registry",
    async () => {
      registry = await startRegistry(join(temp, "registry"));
      const host = new URL(registry.url).host;
      const settings = [
        "fund=false",
        "audit=false",
        "update-notifier=false",
        `//${host}/:_authToken=rehearsal`,
      ];
      writeFileSync(env.NPM_CONFIG_USERCONFIG, `${[`registry=${registry.url}`, ...settings].join("\n")}\n`);
    },
    { needed: true },
  );
  await step("publish", () => publish(packages), { needed: true });

  const libraries = packages.filter(({ manifest }) => manifest.exports?.["."]);
  for (const library of libraries) {
    const readme = readmeOf(library);
    await step(`npm: ${library.name} alone`, async () => {
      const dir = project(`npm-${library.name}`);
      assert(
        readme.names.includes(library.name) && readme.example,
        "no install line or example in its README",
      );
      run("npm", ["install", ...readme.names], dir);
      const found = installed(dir);
      const most = MOST_PACKAGES[library.name] ?? Number.POSITIVE_INFINITY;
      assert(found.length <= most, `${found.length} packages instead of ${most}: ${found.join(", ")}`);
      const { packages: locked } = readJson(join(dir, "package-lock.json"));
      const scripts = Object.keys(locked).filter((path) => locked[path].hasInstallScript);
      assert(scripts.length === 0, `install scripts: ${scripts.join(", ")}`);
      const printed = await runExample(dir, readme);
      const prebuilt = `${library.name}-${process.platform}-${process.arch}`;
      if (packages.some(({ name }) => name === prebuilt))
        assert(!printed.includes("no addon"), `the addon of ${prebuilt} is not found:\n${printed}`);
      checkTypes(dir, readme);
      return `${found.length} package${found.length > 1 ? "s" : ""}; example in ESM, CommonJS and TypeScript`;
    });
    await step(`pnpm: ${library.name} alone`, async () => {
      const dir = project(`pnpm-${library.name}`);
      writeFileSync(join(dir, "pnpm-workspace.yaml"), "minimumReleaseAge: 0\n");
      run(tool("pnpm"), ["add", "--store-dir", join(temp, "store"), ...readme.names], dir);
      await runExample(dir, readme);
    });
  }
  await step("npm: @moba-js/cli, moba doctor", () => {
    const dir = project("cli");
    run("npm", ["install", "@moba-js/cli"], dir);
    const { length } = installed(dir);
    assert(/cpu/.test(run(join(dir, "node_modules", ".bin", "moba"), ["doctor"], dir)), "no cpu backend");
    return `${length} packages`;
  });
  await step("Vite bundles, run in Chromium", bundleAndBrowse);
  await step("a patch release by a changeset: publish it, update an installed project", async () => {
    writeFileSync(
      join(staged, ".changeset", "rehearsal.md"),
      `---\n"@moba-js/tensor": patch\n---\n\nA patch.\n`,
    );
    bump(staged);
    const before = packages[0].version;
    const next = pack(staged, join(temp, "tarballs"));
    const { version } = next[0];
    assert(version !== before, `the version is still ${version}`);
    publish(next);
    const dir = join(temp, "projects", "npm-moba-js");
    run("npm", ["update"], dir);
    const locked = readJson(join(dir, "package-lock.json")).packages;
    const old = Object.keys(locked).filter(
      (path) =>
        next.some(({ name }) => path.endsWith(`node_modules/${name}`)) && locked[path].version !== version,
    );
    assert(old.length === 0, `not updated: ${old.join(", ")}`);
    await runExample(dir, readmeOf(packages.find(({ name }) => name === "moba-js")));
    return `${before} to ${version}`;
  });
}

const start = Date.now();
if (process.argv.includes("--keep")) console.log(`keeps ${temp}`);
else process.once("exit", () => rmSync(temp, { recursive: true, force: true }));
try {
  await rehearse();
} catch (error) {
  if (failures.length === 0) throw error;
  console.log("The steps after this one need it.");
}
console.log(`${count} steps, ${failures.length} failed, ${Math.round((Date.now() - start) / 1000)} s`);
for (const failure of failures) console.log(`failed: ${failure}`);
process.exit(failures.length === 0 ? 0 : 1); // which stops the registry

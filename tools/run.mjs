// The work behind `npm start` and `npm test`: sets everything up on a fresh clone (Node and npm are enough), then runs.
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
process.chdir(root);
const cache = join(root, ".cache");
const env = {
  ...process.env,
  PATH: join(root, "node_modules", ".bin") + delimiter + process.env.PATH,
  TURBO_TELEMETRY_DISABLED: "1",
};
const cli = join("apps", "cli", "dist", "main.js");

/**
 * Runs a program. Returns whether it succeeded. With `quiet`, its output is shown only when it fails; else, the lines of it that
 * match `shown`.
 */
function run(command, args, { quiet = false, shown } = {}) {
  const shell = process.platform === "win32";
  const result = spawnSync(command, args, {
    env,
    shell,
    stdio: quiet ? "pipe" : "inherit",
    maxBuffer: 2 ** 28,
  });
  if (quiet && result.status !== 0)
    process.stderr.write(`${result.stdout ?? ""}${result.stderr ?? result.error}\n`);
  else if (shown) for (const [line] of String(result.stdout).matchAll(shown)) console.error(line);
  return result.status === 0;
}

function requireNode() {
  const [major, minor] = process.versions.node.split(".").map(Number);
  if (major > 20 || (major === 20 && minor >= 19)) return;
  console.error(`moba-js needs Node 20.19 or newer; this is ${process.version}`);
  process.exit(2);
}

/** Installs the dependencies, unless they are those of the lock file already, and builds what has changed. */
function setup() {
  requireNode();
  mkdirSync(cache, { recursive: true });
  const marker = join(cache, "installed");
  const lock = readFileSync("pnpm-lock.yaml", "utf8");
  if (!existsSync("node_modules") || !existsSync(marker) || readFileSync(marker, "utf8") !== lock) {
    console.error("Installing dependencies (once) ...");
    const { packageManager } = JSON.parse(readFileSync("package.json", "utf8"));
    if (!run("npx", ["--yes", packageManager, "install", "--frozen-lockfile"], { quiet: true })) return false;
    writeFileSync(marker, lock);
  }
  console.error("Building what has changed ...");
  // The package for CUDA is built as far as the compilers of this machine go, and says how far.
  return run("turbo", ["run", "build"], {
    quiet: true,
    shown: /(addon: not built|kernels: not compiled): .*/g,
  });
}

function test() {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  const step = (name, action) => {
    const start = Date.now();
    const passed = action();
    counts[passed ? "passed" : "failed"] += 1;
    console.log(`${passed ? "✓" : "✗"} ${name} (${((Date.now() - start) / 1000).toFixed(1)} s)`);
    return passed;
  };
  const failures = [];
  const finish = () => {
    for (const failure of failures) console.log(`✗ ${failure}`); // once more, where the end of a log shows them
    console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
    process.exit(counts.failed === 0 ? 0 : 1);
  };
  if (!step("install and build", setup)) finish();
  step("lint and format", () => run("biome", ["check", "."]));
  step("types", () => run("tsc", ["--noEmit"]));

  const results = join(cache, "vitest.json");
  rmSync(results, { force: true });
  step("unit, property and browser tests", () =>
    run("vitest", ["run", "--reporter=default", "--reporter=json", `--outputFile=${results}`]),
  );
  if (existsSync(results)) {
    const report = JSON.parse(readFileSync(results, "utf8"));
    counts.passed += report.numPassedTests;
    counts.failed += report.numFailedTests;
    counts.skipped += report.numPendingTests;
    for (const { name, assertionResults } of report.testResults) {
      for (const { status, fullName, failureMessages } of assertionResults) {
        if (status === "failed") failures.push(`${name}: ${fullName}\n${failureMessages.join("\n")}`);
      }
    }
  }
  step("conformance of the backends that open here", () => run("node", [cli, "conformance"]));
  step("demo within 90 s", () => {
    const start = Date.now();
    const report = join(cache, "report.html");
    rmSync(report, { force: true });
    return (
      run("node", [cli, "demo", "--out", report]) && statSync(report).size > 0 && Date.now() - start < 90_000
    );
  });
  step("documentation site, its links checked", () => run("npm", ["run", "site"], { quiet: true }));
  step("rehearsal of a release", () => run("node", ["tools/release/rehearse.mjs"]));
  finish();
}

const [command, ...args] = process.argv.slice(2);
if (command === "test") test();
else if (!setup()) process.exit(1);
else if (command === "start") process.exit(run("node", [cli, "demo", ...args]) ? 0 : 1);

// Compiles kernels/<stage>/<name>.cu to dist/kernels/<name>.fatbin, what has changed only, and reports registers and spills.
// `node tools/kernels.mjs [part of a path …]` compiles those whose path has one of the parts. Without nvcc it says so and
// succeeds: the package is whole without kernels, and the first operation then says what is missing.
//
// A kernel that spills registers fails the build, unless its file says why, in a line such as
//   // allow-spills plain_attend_f32: one query a thread, bound by memory anyway
// which speaks for all kernels in the file whose names begin so.
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { basename, dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const sources = join(root, "kernels");
const target = join(root, "dist", "kernels");

const sass = (architecture) => `-gencode=arch=compute_${architecture},code=sm_${architecture}`;
const HOPPER = [sass("90a")];
/** Native code for the architectures that are in use, and PTX for those to come. */
const PORTABLE = [
  ...["80", "86", "89", "90", "100", "120"].map(sass),
  "-gencode=arch=compute_80,code=compute_80",
];
const FLAGS = ["-std=c++17", "-O3", "--fatbin", "--compress-mode=size", "-Xptxas", "-v", `-I${sources}`];

const architecturesOf = (name) => (name.startsWith("sm90_") ? HOPPER : PORTABLE);

const nvcc = spawnSync("nvcc", ["--version"], { encoding: "utf8" });
if (nvcc.status !== 0) {
  console.log("kernels: not compiled: there is no nvcc (CUDA toolkit 13 or later) on the path");
  process.exit(0);
}

/** A file and all that it includes in quotes, in a fixed order. */
function filesOf(file, found = new Set()) {
  if (found.has(file)) return found;
  found.add(file);
  for (const [, name] of readFileSync(file, "utf8").matchAll(/^\s*#include\s+"([^"]+)"/gm)) {
    const included = [join(dirname(file), name), join(sources, name)].find((path) => existsSync(path));
    if (included) filesOf(included, found);
  }
  return found;
}

function hashOf(file, flags) {
  const hash = createHash("sha256").update(nvcc.stdout).update(flags.join(" "));
  for (const part of filesOf(file)) hash.update(relative(sources, part)).update(readFileSync(part));
  return hash.digest("hex");
}

/** What ptxas says of each kernel: registers and spilled bytes. */
function usageOf(log) {
  const pattern =
    /Compiling entry function '([^']+)' for '([^']+)'[\s\S]*?(\d+) bytes spill stores, (\d+) bytes spill loads[\s\S]*?Used (\d+) registers/g;
  return [...log.matchAll(pattern)].map(([, kernel, architecture, stores, loads, registers]) => ({
    kernel,
    architecture,
    spilled: Number(stores) + Number(loads),
    registers: Number(registers),
  }));
}

function runNvcc(args) {
  return new Promise((resolve) => {
    const child = spawn("nvcc", args);
    let log = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (text) => (log += text));
    child.on("close", (status) => resolve({ status, log }));
  });
}

/** Compiles one file. @returns what to report, or undefined when nothing has changed */
async function compile(file, threads) {
  const name = basename(file, ".cu");
  const flags = [...FLAGS, ...architecturesOf(name)];
  const hash = hashOf(file, flags);
  const [fatbin, note] = [join(target, `${name}.fatbin`), join(target, `${name}.hash`)];
  if (existsSync(fatbin) && existsSync(note) && readFileSync(note, "utf8") === hash) return undefined;
  const start = Date.now();
  const unfinished = `${fatbin}.${process.pid}`;
  const { status, log } = await runNvcc([...flags, `-t${threads}`, "-o", unfinished, file]);
  const path = relative(root, file);
  if (status !== 0) return { failed: true, text: `${path}: nvcc failed\n${log}` };
  const allowed = [...readFileSync(file, "utf8").matchAll(/^\/\/ allow-spills (\S+): .+$/gm)].map(
    ([, prefix]) => prefix,
  );
  const usage = usageOf(log);
  const spills = usage.filter(
    ({ kernel, spilled }) => spilled > 0 && !allowed.some((prefix) => kernel.startsWith(prefix)),
  );
  if (spills.length > 0) {
    rmSync(unfinished);
    const lines = spills.map(
      ({ kernel, architecture, spilled, registers }) =>
        `  ${kernel} on ${architecture}: ${spilled} bytes spilled, ${registers} registers`,
    );
    return { failed: true, text: `${path}: registers are spilled\n${lines.join("\n")}` };
  }
  renameSync(unfinished, fatbin);
  writeFileSync(note, hash);
  const most = Math.max(0, ...usage.map(({ registers }) => registers));
  const kernels = new Set(usage.map(({ kernel }) => kernel)).size;
  const size = (statSync(fatbin).size / 1024).toFixed(0);
  const seconds = ((Date.now() - start) / 1000).toFixed(1);
  const warnings = log.match(/^.*\bwarning\b.*$/gm) ?? [];
  return {
    failed: false,
    text: [
      `${path}: ${kernels} kernels, at most ${most} registers, ${size} KiB, ${seconds} s`,
      ...warnings,
    ].join("\n  "),
  };
}

const files = readdirSync(sources, { recursive: true })
  .filter((file) => file.endsWith(".cu"))
  .sort()
  .map((file) => join(sources, file));
mkdirSync(target, { recursive: true });
const names = new Set(files.map((file) => basename(file, ".cu")));
if (names.size < files.length) throw new Error("kernels: two files have the same name");
for (const file of readdirSync(target)) if (!names.has(file.split(".")[0])) rmSync(join(target, file));

const parts = process.argv.slice(2);
const wanted = files.filter((file) => parts.length === 0 || parts.some((part) => file.includes(part)));
const jobs = Math.max(1, Math.min(availableParallelism(), wanted.length));
const threads = Math.max(1, Math.floor(availableParallelism() / jobs));
let [next, compiled, failures] = [0, 0, 0];
await Promise.all(
  Array.from({ length: jobs }, async () => {
    while (next < wanted.length) {
      const report = await compile(wanted[next++], threads);
      if (!report) continue;
      compiled += 1;
      if (report.failed) failures += 1;
      console.log(report.text);
    }
  }),
);
console.log(`kernels: ${wanted.length} files, ${compiled} compiled, ${failures} failed`);
process.exit(failures === 0 ? 0 : 1);

// The steps of the rehearsal: what runs them, and says how they went.
import { execFile } from "node:child_process";

let count = 0;
export const failures = [];

/** Runs one numbered step, which may return a remark, and reports it. @returns whether it succeeded */
export async function step(name, action) {
  const start = Date.now();
  const label = `${String(++count).padStart(2)}. ${name}`;
  try {
    const remark = await action();
    console.log(`${label}: ok${remark ? `, ${remark}` : ""} (${((Date.now() - start) / 1000).toFixed(1)} s)`);
    return true;
  } catch (error) {
    const lines = String(error.message).split("\n");
    const shown = lines.length > 30 ? [...lines.slice(0, 30), `… ${lines.length - 30} lines more`] : lines;
    console.log(`${label}: FAILED\n${shown.map((line) => `      ${line}`).join("\n")}`);
    failures.push(label.trim());
    return false;
  }
}

/** Runs jobs two at a time, in their order. */
export async function inPairs(jobs) {
  const left = [...jobs];
  const worker = async () => {
    for (let job = left.shift(); job; job = left.shift()) await job();
  };
  await Promise.all([worker(), worker()]);
}

/** @throws Error with the message where the condition does not hold */
export function assert(condition, message) {
  if (!condition) throw new Error(message);
}

/** Longer than anything takes on a slow machine: what takes longer hangs. */
const TEN_MINUTES = 600_000;

/**
 * Runs a program to its end. @returns what it prints
 * @throws Error with all that it said when it fails, or when it warns: says anything on stderr
 */
export function run(command, args, { cwd, env, warnings = false }) {
  const options = { cwd, env, timeout: TEN_MINUTES, maxBuffer: 2 ** 26 };
  return new Promise((resolve, reject) => {
    execFile(command, args, options, (error, stdout, stderr) => {
      const line = `${[command, ...args].join(" ")} (in ${cwd})`;
      if (error) {
        const why = error.killed ? "took longer than ten minutes" : `failed: ${error.code}`;
        reject(new Error(`${line} ${why}\n${`${stdout}${stderr}`.trim()}`));
      } else if (!warnings && stderr.trim()) reject(new Error(`${line} warns:\n${stderr.trim()}`));
      else resolve(stdout);
    });
  });
}

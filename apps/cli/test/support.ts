import type { TextStream } from "../src/output.js";
import { run } from "../src/program.js";

/** A stream that keeps what is written. */
export class Captured implements TextStream {
  text = "";
  constructor(readonly isTTY = false) {}
  write(text: string): void {
    this.text += text;
  }
}

/** What a command line wrote and returned. */
export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command line in this process. */
export async function moba(...args: string[]): Promise<Outcome> {
  const [stdout, stderr] = [new Captured(), new Captured()];
  const code = await run(args, { stdout, stderr });
  return { code, stdout: stdout.text, stderr: stderr.text };
}

/** A fresh seed, printed so that a failure can be repeated with `SEED`. */
export function freshSeed(): number {
  const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
  console.log(`SEED=${seed}`);
  return seed;
}

import { styleText } from "node:util";
import { Presets, SingleBar } from "cli-progress";

/** What the commands need of a stream. */
export interface TextStream {
  write(text: string): unknown;
  readonly isTTY?: boolean;
}

/** Shows how far a long job is. */
export interface Progress {
  /** One more step is done. */
  step(description: string): void;
  /** `using progress = …` takes the bar away at the end of the block. */
  [Symbol.dispose](): void;
}

/** Where a command writes: its result on standard output, everything else on standard error. */
export class Output {
  constructor(
    readonly stdout: TextStream,
    readonly stderr: TextStream,
    /** One JSON document on standard output, and nothing else there. */
    readonly json: boolean,
  ) {}

  /** Text for people; not written in JSON mode. */
  print(text = ""): void {
    if (!this.json) this.stdout.write(`${text}\n`);
  }

  /** The result; written in JSON mode only. */
  result(value: unknown): void {
    if (this.json) this.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
  }

  /** Emphasizes text on a terminal, unless NO_COLOR is set (https://no-color.org). */
  highlight(text: string): string {
    const color = this.stdout.isTTY === true && !process.env.NO_COLOR;
    return color ? styleText(["bold", "yellow"], text, { validateStream: false }) : text;
  }

  /** A bar on a terminal, else a line on standard error for every step. */
  progress(job: string, steps: number): Progress {
    if (!this.stderr.isTTY) {
      let done = 0;
      const step = (description: string) => this.stderr.write(`${job} ${++done}/${steps}: ${description}\n`);
      return { step, [Symbol.dispose]: () => {} };
    }
    const options = {
      format: `${job} {bar} {value}/{total} {description}`,
      stream: this.stderr as NodeJS.WriteStream, // what says that it is a terminal is one
      clearOnComplete: true,
    };
    const bar = new SingleBar(options, Presets.rect);
    bar.start(steps, 0, { description: "" });
    return { step: (description) => bar.increment({ description }), [Symbol.dispose]: () => bar.stop() };
  }
}

/** Rows as columns of equal width, all but the first column flush right unless `left` names it. */
export function table(rows: readonly (readonly string[])[], left: readonly number[] = [0]): string {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  const align = (text: string, column: number) =>
    left.includes(column) ? text.padEnd(widths[column]) : text.padStart(widths[column]);
  return rows.map((row) => row.map(align).join("  ").trimEnd()).join("\n");
}

/** A share as a percentage. */
export const percent = (share: number, digits = 1): string => `${(100 * share).toFixed(digits)} %`;

/** An integer with thousands separated. */
export const count = (value: number): string => value.toLocaleString("en-US");

/** Milliseconds with two to four digits, in seconds where they are many. */
export const duration = (ms: number): string =>
  ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(ms < 1 ? 4 : ms < 100 ? 2 : 0)} ms`;

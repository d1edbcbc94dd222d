import { resolve } from "node:path";
import { reproduce, reproductionReport } from "@moba-js/snr";
import { writeAtomically } from "../file.js";
import { duration, type Output } from "../output.js";

/** Options of `moba snr report`. */
export interface SnrReportOptions {
  readonly seed: number;
  readonly out: string;
}

/** Stages that `reproduce` tells of, the end included. */
const STAGES = 7;

/**
 * `moba snr report`: every experiment of the statistical model's report, by simulation from scratch.
 * @throws FormatError for a report that cannot be written.
 */
export async function snrReport({ seed, out }: SnrReportOptions, output: Output): Promise<void> {
  const started = performance.now();
  const path = resolve(out);
  let data: ReturnType<typeof reproduce> | undefined;
  await writeAtomically(path, async () => {
    using progress = output.progress("snr report", STAGES);
    data = reproduce({ seed, onProgress: (label) => progress.step(label) });
    return reproductionReport(data);
  });
  output.print(`Report: ${path} (seed ${seed}, ${duration(performance.now() - started)})`);
  output.result({ ...data, report: path });
}

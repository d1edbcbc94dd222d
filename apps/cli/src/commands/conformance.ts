import {
  type ConformanceReport,
  type ConformanceResult,
  formatMatrix,
  GROUPS,
  type Group,
  runConformance,
} from "@moba-js/conformance";
import { type Backend, FLOAT_DTYPES, type FloatDType } from "@moba-js/tensor";
import type { Output } from "../output.js";

/** Options of `moba conformance`. */
export interface ConformanceCommandOptions {
  /** A fresh one when not given. */
  readonly seed?: number;
  readonly only?: readonly Group[];
  readonly dtype?: readonly FloatDType[];
}

/** Runs the suite; a step of the progress is one group in one dtype. */
async function runSuite(
  backend: Backend,
  { seed, only = GROUPS, dtype: dtypes = FLOAT_DTYPES }: ConformanceCommandOptions,
  output: Output,
): Promise<ConformanceReport> {
  using progress = output.progress("conformance", only.length * dtypes.length);
  let running: string | undefined;
  const onResult = ({ group, dtype }: ConformanceResult): void => {
    const next = `${group} ${dtype}`;
    if (next !== running) progress.step(next);
    running = next;
  };
  return await runConformance(backend, { ...(seed !== undefined && { seed }), only, dtypes, onResult });
}

/**
 * `moba conformance`: proves a backend right against the oracle.
 * @returns whether every check passed.
 */
export async function conformance(
  backend: Backend,
  options: ConformanceCommandOptions,
  output: Output,
): Promise<boolean> {
  const report = await runSuite(backend, options, output);
  output.print(formatMatrix(report));
  output.result(report);
  return report.failed === 0;
}

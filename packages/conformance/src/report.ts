import { type FloatDType, OPERATIONS, type Operation } from "@moba-js/tensor";

/**
 * What the suite checks, one row of the matrix each: the operations, and `moba` (routing and attention in one call),
 * `tensors` (memory, rounding on upload), `nonFinite` (NaN and Infinity stay in the rows that they touch),
 * `properties` (random shapes) and `badInput` (typed errors).
 */
export type Group = Operation | "moba" | "tensors" | "nonFinite" | "properties" | "badInput";

/** Every group, in the order in which the suite runs and prints them. */
export const GROUPS: readonly Group[] = [
  "tensors",
  ...OPERATIONS,
  "moba",
  "nonFinite",
  "properties",
  "badInput",
];

/** What one check found. */
export interface Outcome {
  /** What was looked at: an output's name, `"same bits twice"`, `"inputs unchanged"`, `"no leak"`, … */
  readonly check: string;
  readonly passed: boolean;
  /** The error measured and the most that is allowed, where the check is a comparison. */
  readonly measured?: number;
  readonly allowed?: number;
  /** What went wrong, where numbers do not say it. */
  readonly message?: string;
}

/** One line of a {@link ConformanceReport}. */
export interface ConformanceResult {
  readonly group: Group;
  /** Dtype of the main inputs. */
  readonly dtype: FloatDType;
  /** The case in words: name, shapes and options. Its data follow from this text and the report's seed. */
  readonly title: string;
  /** What was looked at: an output's name, `"same bits twice"`, `"inputs unchanged"`, `"no leak"`, … */
  readonly check: string;
  readonly status: "passed" | "failed" | "skipped";
  /** The error measured, where the check is a comparison. */
  readonly measured?: number;
  /** The most that `measured` may be. */
  readonly allowed?: number;
  /** Why it failed or was skipped, where the numbers do not say it. */
  readonly message?: string;
}

/** What `runConformance` found. Plain JSON. */
export interface ConformanceReport {
  /** `backend.name` */
  readonly backend: string;
  /** `backend.device` */
  readonly device: string;
  /** Give it to `runConformance` to repeat the run. */
  readonly seed: number;
  readonly passed: number;
  /** The backend conforms when this is 0. */
  readonly failed: number;
  readonly skipped: number;
  readonly results: readonly ConformanceResult[];
}

/** One cell of the matrix: the results of one group and dtype in short. */
function cell(results: readonly ConformanceResult[]): string {
  const failed = results.filter(({ status }) => status === "failed").length;
  const passed = results.filter(({ status }) => status === "passed").length;
  if (failed > 0) return `FAIL ${failed} of ${failed + passed}`;
  if (passed === 0) return results.length > 0 ? "skipped" : "";
  const shares = results.flatMap(({ measured, allowed }) =>
    measured !== undefined && allowed ? [measured / allowed] : [],
  );
  const worst = shares.length > 0 ? `, ${(100 * Math.max(...shares)).toFixed(0)} % of bound` : "";
  return `pass ${passed}${worst}`;
}

/** One failure, with all that it takes to reproduce it. */
function failureLine(result: ConformanceResult, seed: number): string {
  const { group, dtype, title, check, measured, allowed, message } = result;
  const error =
    measured === undefined
      ? []
      : [`error ${measured.toExponential(2)}, allowed ${allowed?.toExponential(2)}`];
  const what = [...error, ...(message === undefined ? [] : [message])].join("; ");
  return `- ${group} ${dtype}, ${title} · ${check}: ${what} (seed ${seed})`;
}

/** Rows of text as columns of equal width. */
function table(rows: readonly (readonly string[])[]): string {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows
    .map((row) =>
      row
        .map((text, i) => text.padEnd(widths[i]))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/**
 * A report as text: the matrix of groups × dtypes — how many checks passed and the worst error as a share of its bound, or how
 * many failed, or that it was skipped —, then why rows were skipped, every failure with what it takes to reproduce
 * it, and the counts.
 */
export function formatMatrix(report: ConformanceReport): string {
  const { backend, device, seed, passed, failed, skipped, results } = report;
  const dtypes = [...new Set(results.map(({ dtype }) => dtype))];
  const groups = GROUPS.filter((group) => results.some((result) => result.group === group));
  const cellOf = (group: Group, dtype: FloatDType) =>
    cell(results.filter((result) => result.group === group && result.dtype === dtype));
  const matrix = table([
    [backend, ...dtypes],
    ...groups.map((group) => [group, ...dtypes.map((dtype) => cellOf(group, dtype))]),
  ]);
  const skips = results.filter(({ status }) => status === "skipped");
  const failures = results.filter(({ status }) => status === "failed");
  return [
    `conformance of ${backend} (${device}), seed ${seed}`,
    matrix,
    ...(skips.length > 0 ? ["skipped:"] : []),
    ...skips.map(({ group, dtype, message }) => `- ${group} ${dtype}: ${message}`),
    ...(failures.length > 0 ? ["failed:"] : []),
    ...failures.map((result) => failureLine(result, seed)),
    `${passed} passed, ${failed} failed, ${skipped} skipped`,
  ].join("\n");
}

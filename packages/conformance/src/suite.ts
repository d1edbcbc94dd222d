import {
  ArgumentError,
  type Backend,
  checkDType,
  checkOptions,
  FLOAT_DTYPES,
  type FloatDType,
  OPERATIONS,
  type Operation,
} from "@moba-js/tensor";
import { attendChecks, denseChecks, mobaChecks, windowChecks } from "./attention.js";
import { badInputChecks } from "./bad-input.js";
import type { Check, Subject } from "./check.js";
import { decodingChecks } from "./decoding.js";
import { backwardChecks, denseBackwardChecks, windowBackwardChecks } from "./gradients.js";
import { keyConvBackwardChecks, keyConvChecks } from "./key-conv.js";
import { neuralChecks } from "./neural.js";
import { nonFiniteChecks } from "./non-finite.js";
import { propertyChecks } from "./properties.js";
import {
  type ConformanceReport,
  type ConformanceResult,
  GROUPS,
  type Group,
  type Outcome,
} from "./report.js";
import { centroidChecks, routeChecks } from "./routing.js";
import { tensorChecks } from "./tensors.js";

/** Options of {@link runConformance}. */
export interface ConformanceOptions {
  /** What the test data follow from: any integer. Default: a fresh one, in the report. */
  seed?: number;
  /** The groups to run. Default: all. */
  only?: readonly Group[];
  /** The dtypes to run. Default: f32, f16 and bf16. */
  dtypes?: readonly FloatDType[];
  /** Seconds after which a check that is waiting for the backend counts as failed. Default 120. */
  timeoutSeconds?: number;
  /** Called with each result as it comes, for showing progress. */
  onResult?: (result: ConformanceResult) => void;
}

/** Every JavaScript host has them, but not the language's own library. */
declare function setTimeout(run: () => void, milliseconds: number): unknown;
declare function clearTimeout(timer: unknown): void;

/** The checks of each group. */
const CHECKS: Readonly<Record<Group, (subject: Subject) => Check[]>> = {
  tensors: tensorChecks,
  attention: denseChecks,
  attentionBackward: denseBackwardChecks,
  windowAttention: windowChecks,
  windowAttentionBackward: windowBackwardChecks,
  centroids: centroidChecks,
  route: routeChecks,
  attend: attendChecks,
  attendBackward: backwardChecks,
  keyConv: keyConvChecks,
  keyConvBackward: keyConvBackwardChecks,
  ...neuralChecks,
  ...decodingChecks,
  moba: mobaChecks,
  nonFinite: nonFiniteChecks,
  properties: propertyChecks,
  badInput: badInputChecks,
};

const messageOf = (error: unknown): string =>
  error instanceof Error ? `${error.name}: ${error.message}` : String(error);

/** What `body` resolves to. @throws Error after so many seconds. */
async function within<T>(seconds: number, body: () => Promise<T>): Promise<T> {
  let timer: unknown;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${seconds} s`)), 1000 * seconds);
  });
  try {
    return await Promise.race([body(), late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Lets timers and the page have a turn. */
const breathe = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 0));

/** What a check finds. Whatever it throws is a failure. */
async function outcomesOf(check: Check, timeoutSeconds: number): Promise<Outcome[]> {
  try {
    return await within(timeoutSeconds, check.run);
  } catch (error) {
    return [{ check: "runs", passed: false, message: messageOf(error) }];
  }
}

/** What a backend claims to support. One that cannot say claims it: its answer is a check of its own. */
function claims(backend: Backend, operation: Operation, dtype: FloatDType): boolean {
  try {
    return backend.supports(operation, dtype);
  } catch {
    return true;
  }
}

/** The results of one group in one dtype. What the backend does not support is skipped, each operation with one result. */
async function* runGroup(
  group: Group,
  subject: Subject,
  timeoutSeconds: number,
): AsyncGenerator<ConformanceResult> {
  const { backend, dtype } = subject;
  const denied = new Set(OPERATIONS.filter((operation) => !claims(backend, operation, dtype)));
  const skip = (what: string): ConformanceResult => {
    const message = `${backend.name} does not support ${what} in ${dtype}`;
    return { group, dtype, title: what, check: "support", status: "skipped", message };
  };
  if (denied.size === OPERATIONS.length) {
    yield skip("any operation");
    return;
  }
  const skipped = new Set<Operation>();
  for (const check of CHECKS[group](subject)) {
    const lacking = check.needs.find((operation) => denied.has(operation));
    if (lacking === undefined) {
      for (const { passed, ...outcome } of await outcomesOf(check, timeoutSeconds)) {
        yield { group, dtype, title: check.title, ...outcome, status: passed ? "passed" : "failed" };
      }
      await breathe();
    } else if (!skipped.has(lacking)) {
      skipped.add(lacking);
      yield skip(lacking);
    }
  }
}

/** The options with their defaults, checked. */
function checkedOptions(options: ConformanceOptions) {
  checkOptions(options);
  const {
    seed = Math.floor(Math.random() * 2 ** 31),
    only = GROUPS,
    dtypes = FLOAT_DTYPES,
    timeoutSeconds = 120,
  } = options;
  if (!Number.isInteger(seed)) throw new ArgumentError("seed", seed, "an integer");
  const stranger = only.find((group) => !GROUPS.includes(group));
  if (stranger !== undefined) throw new ArgumentError("only", stranger, `some of ${GROUPS.join(", ")}`);
  for (const dtype of dtypes) checkDType("dtypes", dtype, FLOAT_DTYPES);
  if (!(timeoutSeconds > 0)) throw new ArgumentError("timeoutSeconds", timeoutSeconds, "a number above 0");
  return { seed, only, dtypes, timeoutSeconds };
}

/**
 * Proves a backend right, or shows where it is not: every operation in every dtype on a list of awkward shapes against the
 * float64 oracle, gradients also against finite differences, properties on random shapes, NaN and Infinity, typed errors for
 * bad input; outputs poisoned first, each call twice, inputs compared after, leaks counted.
 *
 * float32 may differ from the oracle by 1e-5 (sums over all tokens by 1e-4) in `‖x − ref‖ / ‖ref‖`; f16 and bf16 by 1.5 × the
 * error of the same operation computed in float64 with inputs, probabilities and output rounded to the dtype.
 * What `backend.supports` denies is skipped, and the report says so; what it claims has to work.
 *
 * ```ts
 * import { formatMatrix, runConformance } from "@moba-js/conformance";
 * import { MyBackend } from "./my-backend.js";
 *
 * const report = await runConformance(new MyBackend());
 * console.log(formatMatrix(report));
 * if (report.failed > 0) throw new Error("MyBackend does not conform");
 * ```
 *
 * @param backend any backend; left open. Nothing else should use it meanwhile.
 * @returns the report. A check that throws is a failure in it.
 * @throws ArgumentError or DTypeError for options out of range.
 */
export async function runConformance(
  backend: Backend,
  options: ConformanceOptions = {},
): Promise<ConformanceReport> {
  const { seed, only, dtypes, timeoutSeconds } = checkedOptions(options);
  const results: ConformanceResult[] = [];
  const { poisonOutputs } = backend.debug;
  backend.debug.poisonOutputs = true; // so that an element that no kernel writes shows
  try {
    for (const group of GROUPS.filter((candidate) => only.includes(candidate))) {
      for (const dtype of dtypes) {
        for await (const result of runGroup(group, { backend, dtype, seed }, timeoutSeconds)) {
          results.push(result);
          options.onResult?.(result);
        }
      }
    }
  } finally {
    backend.debug.poisonOutputs = poisonOutputs;
  }
  const count = (status: ConformanceResult["status"]) =>
    results.filter((result) => result.status === status).length;
  return {
    backend: backend.name,
    device: backend.device,
    seed,
    passed: count("passed"),
    failed: count("failed"),
    skipped: count("skipped"),
    results,
  };
}

import { type Backend, decode, LeakError, leakCheck, type Tensor, type TypedArray } from "@moba-js/tensor";
import { type Expectation, type HostTensor, judgeOutputs, mapNamed, type Named } from "./compare.js";
import type { Outcome } from "./report.js";

/** A call of a backend on fresh tensors. */
export interface Call {
  readonly inputs: Named<HostTensor>;
  /** Runs the operation. Every tensor that it returns is read and disposed. */
  run(tensors: Named<Tensor>): Named<Tensor>;
}

/** A call, and what its results must be. */
export interface Trial extends Call {
  judge(outputs: Named<HostTensor>): Outcome[];
}

/** A call, and what the oracle says its results are. */
export interface ComparedCall extends Call {
  readonly expected: Named<Expectation>;
}

/** A call judged by comparison with the oracle. */
export const compared = ({ expected, ...call }: ComparedCall): Trial => ({
  ...call,
  judge: (outputs) => judgeOutputs(expected, outputs),
});

/** The elements of tensors as stored. */
async function download(tensors: Named<Tensor>): Promise<Record<string, TypedArray>> {
  const stored: Record<string, TypedArray> = {};
  for (const [name, tensor] of Object.entries(tensors)) stored[name] = await tensor.data();
  return stored;
}

/** Runs `body` on the call's inputs as tensors, and disposes them. */
async function withInputs<T>(
  backend: Backend,
  { inputs }: Pick<Call, "inputs">,
  body: (tensors: Named<Tensor>) => Promise<T>,
): Promise<T> {
  const tensors: Record<string, Tensor> = {};
  try {
    for (const [name, { values, shape, dtype }] of Object.entries(inputs)) {
      tensors[name] = backend.tensor(values, shape, dtype);
    }
    return await body(tensors);
  } finally {
    for (const tensor of Object.values(tensors)) tensor.dispose();
  }
}

/** Runs the call once on these tensors and brings the results to the host. */
async function callOnce(call: Call, tensors: Named<Tensor>): Promise<Named<HostTensor>> {
  const results = call.run(tensors);
  try {
    const stored = await download(results);
    return mapNamed(results, ({ shape, dtype }, name) => ({
      shape,
      dtype,
      values: decode(stored[name], dtype),
    }));
  } finally {
    for (const tensor of Object.values(results)) tensor.dispose();
  }
}

/** Runs a call once. */
export const compute = (backend: Backend, call: Call): Promise<Named<HostTensor>> =>
  withInputs(backend, call, (tensors) => callOnce(call, tensors));

/** Whether two arrays hold the same bits. */
function sameBits(a: TypedArray, b: TypedArray): boolean {
  const [x, y] = [a, b].map((array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength));
  return x.length === y.length && x.every((byte, i) => byte === y[i]);
}

/** The outcome of comparing stored arrays bit by bit. */
function judgeSameBits(check: string, actual: Named<TypedArray>, expected: Named<TypedArray>): Outcome {
  return judgeSame(check, expected, (name) => sameBits(actual[name], expected[name]));
}

/** The outcome of a comparison of named arrays. */
function judgeSame(check: string, expected: Named<unknown>, same: (name: string) => boolean): Outcome {
  const differing = Object.keys(expected).filter((name) => !same(name));
  return differing.length === 0
    ? { check, passed: true }
    : { check, passed: false, message: `${differing.join(", ")} differ${differing.length > 1 ? "" : "s"}` };
}

/** The outcome of comparing values one by one: bit by bit, but any NaN is like any other, since nothing defines its bits. */
function judgeSameValues(check: string, actual: Named<HostTensor>, expected: Named<HostTensor>): Outcome {
  return judgeSame(check, expected, (name) => {
    const [a, b] = [actual[name].values, expected[name].values];
    return a.length === b.length && b.every((value, i) => Object.is(value, a[i]));
  });
}

/** Runs `body` on inputs as tensors, and adds two outcomes: the inputs are as they were, every tensor made was disposed. */
export const observed = (
  backend: Backend,
  call: Pick<Call, "inputs">,
  body: (tensors: Named<Tensor>) => Promise<Outcome[]>,
): Promise<Outcome[]> =>
  withLeakOutcome(backend, () =>
    withInputs(backend, call, async (tensors) => {
      const uploaded = await download(tensors);
      const outcomes = await body(tensors);
      return [...outcomes, judgeSameBits("inputs unchanged", await download(tensors), uploaded)];
    }),
  );

/** Runs a trial, twice on the same tensors: judges the results, and that they are the same bits both times. */
export const runTrial = (backend: Backend, trial: Trial): Promise<Outcome[]> =>
  observed(backend, trial, async (tensors) => {
    const first = await callOnce(trial, tensors);
    const second = await callOnce(trial, tensors);
    return [...trial.judge(first), judgeSameValues("same bits twice", second, first)];
  });

/** Runs `body` and adds the outcome of the leak check. */
export async function withLeakOutcome(backend: Backend, body: () => Promise<Outcome[]>): Promise<Outcome[]> {
  const check = "no leak";
  let outcomes: Outcome[] = [];
  try {
    await leakCheck(backend, async () => {
      outcomes = await body();
    });
  } catch (error) {
    if (!(error instanceof LeakError)) throw error;
    return [...outcomes, { check, passed: false, message: error.message }];
  }
  return [...outcomes, { check, passed: true }];
}

import type { Backend, Tensor } from "@moba-js/tensor";

/** The middle value (the upper one of two). */
export const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

/** Device milliseconds of one run of `operation`; what it makes is disposed. */
const timeOnce = (backend: Backend, operation: () => unknown): Promise<number> =>
  backend.time(() =>
    backend.scope(() => {
      operation();
    }),
  );

/** Device milliseconds of `repeats` runs after one that is not counted. */
export async function timeRepeated(
  backend: Backend,
  operation: () => unknown,
  repeats: number,
): Promise<number[]> {
  await timeOnce(backend, operation);
  const samples: number[] = [];
  while (samples.length < repeats) samples.push(await timeOnce(backend, operation));
  return samples;
}

/** A timed sample takes at least so many milliseconds, so that launching the first kernel does not count. */
const SAMPLE_MILLISECONDS = 30;
/**
 * Runs that are not counted, for clocks, caches and the compiler of JavaScript to settle: so many at least, unless one takes long, and
 * for so many milliseconds, but not more than that.
 */
const [WARM_RUNS, WARM_MILLISECONDS, MOST_WARM_RUNS] = [3, 100, 500];

/**
 * Device milliseconds of one run of `operation`, `repeats` samples of as many runs in a row as make a sample long enough.
 * What `operation` makes is disposed.
 */
export async function timeSteadily(
  backend: Backend,
  operation: () => unknown,
  repeats: number,
): Promise<number[]> {
  let once = 0;
  let warm = 0;
  const settled = (runs: number) =>
    once >= WARM_MILLISECONDS || (runs >= WARM_RUNS && warm >= WARM_MILLISECONDS) || runs >= MOST_WARM_RUNS;
  for (let i = 0; !settled(i); i++) {
    once = await timeOnce(backend, operation);
    warm += once;
  }
  const runs = Math.max(1, Math.min(100, Math.ceil(SAMPLE_MILLISECONDS / once)));
  const sample = async () => {
    const total = await backend.time(() => {
      for (let i = 0; i < runs; i++) {
        backend.scope(() => {
          operation();
        });
      }
    });
    return total / runs;
  };
  const samples: number[] = [];
  while (samples.length < repeats) samples.push(await sample());
  return samples;
}

/** Self-attention of a text's first tokens, MoBA against dense. */
export interface AttentionTiming {
  /** `N`. */
  readonly tokens: number;
  /** Median milliseconds. */
  readonly moba: number;
  /** Median milliseconds. */
  readonly dense: number;
  /** Runs of which `dense` is the median, and those of `moba`. */
  readonly runs: { readonly moba: number; readonly dense: number };
}

/** What to time. */
export interface AttentionTimingOptions {
  /** `B`. */
  readonly blockSize: number;
  /** `k`. */
  readonly topK: number;
  /** The most runs of each. */
  readonly repeats: number;
  /** Seconds after which no further run of the same kind begins. */
  readonly budget: number;
}

async function timeWithin(
  backend: Backend,
  operation: () => unknown,
  { repeats, budget }: AttentionTimingOptions,
): Promise<number[]> {
  const samples: number[] = [];
  let spent = 0;
  while (samples.length < repeats && spent < budget * 1000) {
    const sample = await timeOnce(backend, operation);
    samples.push(sample);
    spent += sample;
  }
  return samples;
}

/** Times causal self-attention, `q = k = v = x` of shape `[N, 1, d]`: MoBA and dense. */
export async function timeSelfAttention(
  backend: Backend,
  x: Tensor,
  options: AttentionTimingOptions,
): Promise<AttentionTiming> {
  const { blockSize, topK } = options;
  const moba = await timeWithin(backend, () => backend.moba(x, x, x, { blockSize, topK }), options);
  const dense = await timeWithin(backend, () => backend.attention(x, x, x), options);
  return {
    tokens: x.shape[0],
    moba: median(moba),
    dense: median(dense),
    runs: { moba: moba.length, dense: dense.length },
  };
}

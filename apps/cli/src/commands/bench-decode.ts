import { type Backend, cuSeqlensFromLengths, type FloatDType } from "@moba-js/tensor";
import { isMeasured, type MeasuredBackend } from "../measured-backend.js";
import { normalTensor } from "../normal-tensor.js";
import { count, duration, type Output, percent, table } from "../output.js";
import { generator, integer } from "../random.js";
import { decodeWork, leastTime } from "../roofline.js";
import { judgeRows, runPoisoned } from "../row-check.js";
import { median, timeSteadily } from "../timing.js";
import { checkedRows, checkText, timeKernels } from "./bench.js";

/** Options of `moba bench decode`. */
export interface BenchDecodeOptions {
  /** Keys in the cache, the new one included, for each case. */
  readonly tokens: readonly number[];
  readonly batch: number;
  readonly heads: number;
  /** As many as `heads` when not given. */
  readonly kvHeads?: number;
  readonly dim: number;
  readonly blockSize: number;
  readonly topK: number;
  readonly dtype: FloatDType;
  readonly repeats: number;
  readonly seed: number;
  /** Whether dense attention is run too. */
  readonly dense: boolean;
}

/** Steps whose time is one sample, on a backend that can capture them. */
const STEPS = 20;

/** Device milliseconds of one run of `operation`, captured once and replayed, sample by sample. */
async function timeReplays(
  backend: MeasuredBackend,
  operation: () => unknown,
  repeats: number,
): Promise<number[]> {
  const run = () =>
    backend.scope(() => {
      operation();
    });
  run(); // loads the kernels
  const graph = backend.capture(run);
  const replays = () => {
    for (let i = 0; i < STEPS; i++) graph.replay();
  };
  await backend.time(replays);
  const samples: number[] = [];
  while (samples.length < repeats) samples.push((await backend.time(replays)) / STEPS);
  graph.dispose();
  return samples;
}

async function runCase(backend: Backend, tokens: number, options: BenchDecodeOptions) {
  const { batch, heads, kvHeads = heads, dim: headDim, blockSize, topK, dtype, repeats, seed } = options;
  const random = generator("bench decode", seed, tokens);
  const perSequence = (value: number) => new Array<number>(batch).fill(value);
  const cuSeqlens = cuSeqlensFromLengths(perSequence(1));
  const cuSeqlensK = cuSeqlensFromLengths(perSequence(tokens));
  const cuCentroids = cuSeqlensFromLengths(perSequence(Math.ceil(tokens / blockSize)));
  const make = (rows: number, width: number) => normalTensor(backend, random, [rows, width, headDim], dtype);
  using q = make(batch, heads);
  using k = make(batch * tokens, kvHeads);
  using v = make(batch * tokens, kvHeads);
  using newK = make(batch, kvHeads);
  using newV = make(batch, kvHeads);
  using centroids = backend.centroids(k, { cuSeqlens: cuSeqlensK, blockSize });
  const rows = { cuSeqlens, offsets: Array.from({ length: batch }, (_, s) => s * tokens + tokens - 1) };
  const append = { cuSeqlens, offsets: perSequence(tokens - 1), cuCentroids, blockSize };
  const step = () => {
    backend.copyRows(k, newK, rows);
    backend.copyRows(v, newV, rows);
    backend.updateCentroids(centroids, newK, append);
    const routing = backend.routeCentroids(q, centroids, {
      cuSeqlens,
      cuSeqlensK,
      cuCentroids,
      blockSize,
      topK,
    });
    return { ...backend.attend(q, k, v, routing), routing };
  };
  const dense = () => backend.attention(q, k, v, { cuSeqlens, cuSeqlensK });

  const sampled = Array.from({ length: Math.min(batch * heads, checkedRows(tokens)) }, () => {
    const query = integer(random, batch);
    return { query, head: integer(random, heads), firstKey: query * tokens, keys: tokens };
  });
  const first = runPoisoned(backend, () => ({ moba: step(), ...(options.dense && { dense: dense() }) }));
  const outputs = {
    ...(first.dense && { dense: first.dense.out }),
    moba: first.moba.out,
    indices: first.moba.routing.indices,
  };
  const check = await judgeRows({ q, k, v }, outputs, sampled, { blockSize, topK });
  const made = [outputs.moba, first.moba.lse, outputs.indices, first.dense?.out, first.dense?.lse];
  for (const tensor of made) tensor?.dispose();
  if (!check.passed) return { check };

  const work = decodeWork({ batch, tokens, heads, kvHeads, headDim, blockSize, topK, dtype });
  const kernels = isMeasured(backend) ? await timeKernels(backend, step, repeats) : [];
  const time = (operation: () => unknown): Promise<number[]> =>
    isMeasured(backend)
      ? timeReplays(backend, operation, repeats)
      : timeSteadily(backend, operation, repeats);
  const samples = { moba: await time(step), ...(options.dense && { dense: await time(dense) }) };
  const share = (name: "moba" | "dense", milliseconds: number): number | null => {
    const least = leastTime(backend.device, dtype, work[name]);
    return least === undefined ? null : least / milliseconds;
  };
  const medians = { moba: median(samples.moba), ...(samples.dense && { dense: median(samples.dense) }) };
  return {
    check,
    samples,
    median: medians,
    work,
    roofline: {
      moba: share("moba", medians.moba),
      ...(medians.dense !== undefined && { dense: share("dense", medians.dense) }),
    },
    captured: isMeasured(backend),
    ...(kernels.length > 0 && { kernels }),
  };
}

/**
 * `moba bench decode`: one decoding step of each sequence of a batch, that is to append a key and a value to the cache,
 * update its centroid, route and attend; captured and replayed where the backend can. Dense attention over the same cache
 * beside it. The first step is checked against the oracle.
 * @returns whether every check passed; a case is not timed when its own did not.
 */
export async function benchDecode(
  backend: Backend,
  options: BenchDecodeOptions,
  output: Output,
): Promise<boolean> {
  const { batch, heads, kvHeads = heads, dim: headDim, blockSize, topK, dtype, repeats, seed } = options;
  const cases: ({ tokens: number } & Awaited<ReturnType<typeof runCase>>)[] = [];
  using progress = output.progress("bench decode", options.tokens.length);
  for (const tokens of options.tokens) {
    cases.push({ tokens, ...(await runCase(backend, tokens, options)) });
    progress.step(`N = ${count(tokens)}`);
  }
  output.print(`decoding on ${backend.name} (${backend.device}), seed ${seed}`);
  output.print(
    `${batch} sequence(s), H = ${heads}, Hkv = ${kvHeads}, d = ${headDim}, B = ${blockSize}, k = ${topK}, ${dtype}`,
  );
  const time = (milliseconds: number | undefined) =>
    milliseconds === undefined ? "" : duration(milliseconds);
  for (const { tokens, check } of cases) output.print(`N = ${count(tokens)}: ${checkText(check)}`);
  output.print();
  output.print(
    table([
      [`a step, of ${repeats} samples`, "MoBA", "of roofline", "dense", "dense / MoBA"],
      ...cases.map(({ tokens, ...result }) => {
        if (!("median" in result)) return [`N = ${count(tokens)}`, "not timed: the check failed", "", "", ""];
        const { moba, dense } = result.median;
        const share = result.roofline.moba;
        return [
          `N = ${count(tokens)}`,
          time(moba),
          share === null ? "" : percent(share, 0),
          time(dense),
          dense === undefined ? "" : (dense / moba).toFixed(2),
        ];
      }),
    ]),
  );
  const shape = { batch, heads, kvHeads, headDim, blockSize, topK, dtype };
  output.result({ backend: backend.name, device: backend.device, seed, ...shape, repeats, cases });
  return cases.every(({ check }) => check.passed);
}

import {
  type AttentionResult,
  type Backend,
  cuSeqlensFromLengths,
  type FloatDType,
  type MobaOptions,
  type Routing,
} from "@moba-js/tensor";
import {
  checkGradients,
  type GradientCheck,
  type GradientErrors,
  type GradientTensors,
} from "../gradient-check.js";
import { isMeasured, type MeasuredBackend } from "../measured-backend.js";
import { normalTensor } from "../normal-tensor.js";
import { count, duration, type Output, percent, table } from "../output.js";
import { type Generator, generator, integer, uniform } from "../random.js";
import { type AttentionShape, attentionWork, leastTime, type Work } from "../roofline.js";
import { type AttentionTensors, checkRows, type Judged, type RowCheck } from "../row-check.js";
import { median, timeSteadily } from "../timing.js";

/** Options of `moba bench attention`. */
export interface BenchAttentionOptions {
  /** `N` of each case. */
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
  /** Whether attending is also timed for a routing by which half of the queries choose the same 1 % of blocks. */
  readonly skewed: boolean;
  /** Whether the gradients are run too; memory and kernels are then those of forward and backward. */
  readonly backward: boolean;
}

const MOST_CHECKED_ROWS = 16;
const LEAST_CHECKED_ROWS = 4;
/** Fewer rows are checked where each has so many keys that the oracle would take minutes. */
const CHECKED_KEYS = 2 ** 20;

/** How many rows to check where each has so many keys. */
export const checkedRows = (tokens: number): number =>
  Math.max(LEAST_CHECKED_ROWS, Math.min(MOST_CHECKED_ROWS, Math.floor(CHECKED_KEYS / tokens)));

/** One row of the result. */
interface Stage {
  readonly name: string;
  readonly label: string;
  readonly run: () => unknown;
  readonly work: Work;
}

/** A stage's milliseconds, sample by sample, and the least that the device could take, if that is known. */
interface TimedStage extends Stage {
  readonly samples: readonly number[];
  readonly least: number | undefined;
}

/** One kernel's part in an operation. */
interface KernelTime {
  readonly name: string;
  readonly launches: number;
  readonly milliseconds: number;
}

/** Bytes on the device. */
interface MemoryUse {
  /** The most that the operation held beyond its inputs. */
  readonly peakBeyondInputs: number;
  /** Of that, what it returned. */
  readonly results: number;
}

const against = ({ error, bound }: Judged): string =>
  `${error.toExponential(1)} (at most ${bound.toExponential(1)})`;

/** How a check came out, in words. */
export function checkText({ rows, dense, moba, routing }: RowCheck): string {
  const denseText = dense ? `dense ${against(dense)}, ` : "";
  return `checked on ${rows} rows: ${denseText}MoBA ${against(moba)}, routing ${against(routing)}`;
}

/** How a check of gradients came out, in words. */
function gradientText({ keys, queries, moba, dense }: GradientCheck): string {
  const errors = ({ dq, dk, dv }: GradientErrors) =>
    `dq ${against(dq)}, dk ${against(dk)}, dv ${against(dv)}`;
  const denseText = dense ? `\ndense gradients: ${errors(dense)}` : "";
  return `gradients checked of ${count(keys)} keys and ${count(queries)} queries: ${errors(moba)}${denseText}`;
}

/** Median times of each kernel that `run` launches, the longest first. */
export async function timeKernels(
  backend: MeasuredBackend,
  run: () => unknown,
  repeats: number,
): Promise<KernelTime[]> {
  const profiles: (readonly { readonly name: string; readonly milliseconds: number }[])[] = [];
  for (let i = 0; i < repeats; i++) {
    profiles.push(
      await backend.profile(() => {
        backend.scope(() => {
          run();
        });
      }),
    );
  }
  const totals = profiles.map((launches) => {
    const total = new Map<string, number>();
    for (const { name, milliseconds } of launches) total.set(name, (total.get(name) ?? 0) + milliseconds);
    return total;
  });
  const kernels = [...totals[0].keys()].map((name) => ({
    name,
    launches: profiles[0].filter((launch) => launch.name === name).length,
    milliseconds: median(totals.map((total) => total.get(name) ?? 0)),
  }));
  return kernels.sort((a, b) => b.milliseconds - a.milliseconds);
}

/** The memory of one run. */
function memoryOf(backend: MeasuredBackend, run: () => unknown): MemoryUse {
  const before = backend.deviceMemory().usedBytes;
  backend.resetPeakMemory();
  return backend.scope(() => {
    run();
    const { usedBytes, peakUsedBytes } = backend.deviceMemory();
    return { peakBeyondInputs: peakUsedBytes - before, results: usedBytes - before };
  });
}

/**
 * Causal routing indices `[T, H, slots]` made by chance; with `skewed`, half of the queries choose the first 1 % of blocks
 * before all others.
 */
export function randomRouting(
  random: Generator,
  {
    batch,
    tokens,
    heads,
    blockSize,
    topK,
  }: { batch: number; tokens: number; heads: number; blockSize: number; topK: number },
  skewed: boolean,
): Int32Array {
  const blocks = Math.ceil(tokens / blockSize);
  const slots = Math.min(topK, blocks);
  const popular = Math.ceil(blocks / 100);
  const indices = new Int32Array(batch * tokens * heads * slots).fill(-1);
  for (let row = 0; row * slots < indices.length; row++) {
    const own = Math.floor((Math.floor(row / heads) % tokens) / blockSize);
    const chosen = new Set([own]);
    const wanted = Math.min(slots, own + 1);
    if (skewed && uniform(random) < 0.5) {
      for (let block = 0; block < Math.min(popular, own) && chosen.size < wanted; block++) chosen.add(block);
    }
    while (chosen.size < wanted) chosen.add(integer(random, own));
    indices.set([...chosen], row * slots);
  }
  return indices;
}

/** Runs and times the stages of one case. */
async function timeStages(
  backend: Backend,
  stages: readonly Stage[],
  options: BenchAttentionOptions,
  output: Output,
): Promise<TimedStage[]> {
  using progress = output.progress("bench attention", stages.length);
  const timed: TimedStage[] = [];
  for (const stage of stages) {
    const samples = await timeSteadily(backend, stage.run, options.repeats);
    timed.push({ ...stage, samples, least: leastTime(backend.device, options.dtype, stage.work) });
    progress.step(stage.name);
  }
  return timed;
}

/** How the results were. */
interface CaseCheck extends RowCheck {
  /** Absent where gradients were not run, or the forward pass was wrong already. */
  readonly gradients?: GradientCheck;
}

/** What one case came to. */
interface CaseResult {
  readonly check: CaseCheck;
  readonly stages: readonly TimedStage[];
  readonly kernels: readonly KernelTime[];
  readonly memory: MemoryUse | undefined;
}

type PackedOptions = MobaOptions & { readonly cuSeqlens: Int32Array };

/** What makes the stages of a case of this shape. */
const stagesOf = (shape: AttentionShape) => {
  const work = attentionWork(shape);
  return (name: keyof typeof work, label: string, run: () => unknown): Stage => ({
    name,
    label,
    run,
    work: work[name],
  });
};

/** MoBA and its gradients. */
function mobaForwardBackward(backend: Backend, tensors: GradientTensors, moba: PackedOptions): void {
  const { q, k, v, dOut } = tensors;
  const { out, lse, routing } = backend.moba(q, k, v, moba);
  backend.attendBackward(dOut, q, k, v, out, lse, routing);
}

/** Runs and times the stages with gradients of one case. */
async function timeBackward(
  backend: Backend,
  tensors: GradientTensors,
  moba: PackedOptions,
  stage: ReturnType<typeof stagesOf>,
  options: BenchAttentionOptions,
  output: Output,
): Promise<TimedStage[]> {
  const { q, k, v, dOut } = tensors;
  const forward = backend.moba(q, k, v, moba);
  using out = forward.out;
  using lse = forward.lse;
  using routing = forward.routing;
  const backward = () => backend.attendBackward(dOut, q, k, v, out, lse, routing);
  const forwardBackward = () => mobaForwardBackward(backend, tensors, moba);
  const stages = [
    stage("backward", "  backward", backward),
    stage("forwardBackward", "MoBA forward + backward", forwardBackward),
  ];
  const timed = await timeStages(backend, stages, options, output);
  if (!options.dense) return timed;

  const { cuSeqlens } = moba;
  const attention = () => backend.attention(q, k, v, { cuSeqlens });
  const denseForward = attention();
  using denseOut = denseForward.out;
  using denseLse = denseForward.lse;
  const denseBackward = ({ out, lse }: AttentionResult) =>
    backend.attentionBackward(dOut, q, k, v, out, lse, { cuSeqlens });
  const denseStages = [
    stage("denseBackward", "  dense backward", () => denseBackward({ out: denseOut, lse: denseLse })),
    stage("denseForwardBackward", "dense forward + backward", () => denseBackward(attention())),
  ];
  return [...timed, ...(await timeStages(backend, denseStages, options, output))];
}

/** Runs MoBA, and whatever else is timed, once, and compares with the oracle. */
async function checkCase(
  backend: Backend,
  tensors: AttentionTensors & { dOut: GradientTensors["dOut"] | undefined },
  moba: PackedOptions,
  options: { rows: number; dense: boolean },
  random: Generator,
): Promise<CaseCheck> {
  const check = await checkRows(backend, tensors, moba, options, random);
  const { dOut } = tensors;
  if (!dOut || !check.passed) return check;
  const gradients = await checkGradients(backend, { ...tensors, dOut }, moba, options, random);
  return { ...check, gradients, passed: gradients.passed };
}

/** Checks and times one case. */
async function runCase(
  backend: Backend,
  tokens: number,
  options: BenchAttentionOptions,
  output: Output,
): Promise<CaseResult> {
  const {
    batch,
    heads,
    kvHeads = heads,
    dim: headDim,
    blockSize,
    topK,
    dtype,
    dense,
    repeats,
    seed,
  } = options;
  const random = generator("bench attention", seed, tokens);
  const cuSeqlens = cuSeqlensFromLengths(new Array<number>(batch).fill(tokens));
  const moba: PackedOptions = { cuSeqlens, blockSize, topK };
  const make = (rows: number) => normalTensor(backend, random, [batch * tokens, rows, headDim], dtype);
  using q = make(heads);
  using k = make(kvHeads);
  using v = make(kvHeads);
  using dOut = options.backward ? make(heads) : undefined;
  const rows = checkedRows(tokens);
  const check = await checkCase(backend, { q, k, v, dOut }, moba, { rows, dense }, random);
  if (!check.passed) return { check, stages: [], kernels: [], memory: undefined };

  const stage = stagesOf({ batch, tokens, heads, kvHeads, headDim, blockSize, topK, dtype });
  const attend = (routing: Routing) => () => backend.attend(q, k, v, routing);
  using routing = backend.route(q, k, moba);
  const stages = [
    stage("centroids", "  centroids", () => backend.centroids(k, moba)),
    stage("route", "  route, its own centroids included", () => backend.route(q, k, moba)),
    stage("attend", "  attend", attend(routing)),
    stage("moba", "MoBA forward", () => backend.moba(q, k, v, moba)),
  ];
  if (dense) stages.push(stage("dense", "dense forward", () => backend.attention(q, k, v, { cuSeqlens })));
  const timed = await timeStages(backend, stages, options, output);
  if (dOut) timed.push(...(await timeBackward(backend, { q, k, v, dOut }, moba, stage, options, output)));
  if (options.skewed) {
    for (const skewed of [false, true]) {
      const indices = randomRouting(random, { batch, tokens, heads, blockSize, topK }, skewed);
      const shape = [batch * tokens, heads, routing.indices.shape[2]] as const;
      using made = backend.createRouting(indices, shape, moba);
      const kind = skewed ? "skewed" : "uniform";
      const attending = stage("attend", `  attend, ${kind} routing`, attend(made));
      timed.push(...(await timeStages(backend, [{ ...attending, name: `attend-${kind}` }], options, output)));
    }
  }
  const run = () =>
    dOut ? mobaForwardBackward(backend, { q, k, v, dOut }, moba) : backend.moba(q, k, v, moba);
  const measured = isMeasured(backend) ? backend : undefined;
  const memory = measured && memoryOf(measured, run);
  const kernels = measured ? await timeKernels(measured, run, repeats) : [];
  return { check, stages: timed, kernels, memory };
}

const mib = (bytes: number): string => `${count(Math.round(bytes / 2 ** 20))} MiB`;

function printCase(
  { stages, kernels, memory }: CaseResult,
  { repeats, backward }: BenchAttentionOptions,
  output: Output,
): void {
  const medians = new Map(stages.map(({ name, samples }) => [name, median(samples)]));
  const rows = stages.map(({ label, samples, least }) => [
    label,
    ...[median(samples), Math.min(...samples), Math.max(...samples)].map(duration),
    least === undefined ? "" : percent(least / median(samples), 0),
  ]);
  const known = stages.some(({ least }) => least !== undefined);
  output.print();
  output.print(
    table([[`of ${repeats} samples`, "median", "least", "most", known ? "of roofline" : ""], ...rows]),
  );
  if (kernels.length > 0) {
    const total = kernels.reduce((sum, { milliseconds }) => sum + milliseconds, 0);
    output.print();
    output.print(
      table([
        [`MoBA's kernels${backward ? ", forward + backward" : ""}`, "launches", "median", "share"],
        ...kernels.map(({ name, launches, milliseconds }) => [
          `  ${name}`,
          String(launches),
          `${milliseconds.toFixed(3)} ms`,
          percent(milliseconds / total, 0),
        ]),
      ]),
    );
  }
  output.print();
  if (memory) {
    const { peakBeyondInputs, results } = memory;
    output.print(`memory beyond inputs ${mib(peakBeyondInputs)}, of which results ${mib(results)}`);
  }
  const pairs = [
    ["dense / MoBA", "dense", "moba"],
    ["dense / MoBA, forward + backward", "denseForwardBackward", "forwardBackward"],
  ];
  for (const [label, denseStage, mobaStage] of pairs) {
    const dense = medians.get(denseStage);
    if (dense !== undefined)
      output.print(`${label} = ${(dense / (medians.get(mobaStage) as number)).toFixed(2)}`);
  }
}

/** What JSON says of a case. */
function report(tokens: number, { check, stages, kernels, memory }: CaseResult) {
  const byName = <T>(value: (stage: TimedStage) => T) =>
    Object.fromEntries(stages.map((stage) => [stage.name, value(stage)]));
  const medians: Record<string, number> = byName(({ samples }) => median(samples));
  return {
    tokens,
    check,
    ...(stages.length > 0 && {
      samples: byName(({ samples }) => samples),
      median: medians,
      work: byName(({ work }) => work),
      roofline: byName(({ samples, least }) => (least === undefined ? null : least / median(samples))),
      ...("dense" in medians && { ratio: medians.dense / medians.moba }),
      ...(kernels.length > 0 && { kernels }),
      ...(memory && { memory }),
    }),
  };
}

/**
 * `moba bench attention`: causal MoBA against dense attention, forward and, if wanted, backward, on fresh random inputs, for
 * each number of tokens.
 * A result is checked against the oracle, on sampled rows, before anything is timed.
 * @returns whether every check passed; a case is not timed when its own did not.
 */
export async function benchAttention(
  backend: Backend,
  options: BenchAttentionOptions,
  output: Output,
): Promise<boolean> {
  const { batch, heads, kvHeads = heads, dim: headDim, blockSize, topK, dtype, repeats, seed } = options;
  const shape = { batch, heads, kvHeads, headDim, blockSize, topK, dtype };
  const cases = [];
  for (const tokens of options.tokens) {
    const result = await runCase(backend, tokens, options, output);
    if (cases.length === 0) output.print(`attention on ${backend.name} (${backend.device}), seed ${seed}`);
    cases.push(report(tokens, result));
    const sequences = batch === 1 ? "" : `${batch} sequences, `;
    output.print();
    output.print(
      `N = ${count(tokens)}, ${sequences}H = ${heads}, Hkv = ${kvHeads}, d = ${headDim}, B = ${blockSize}, ` +
        `k = ${topK}, ${dtype}, causal, forward${options.backward ? " + backward" : ""}`,
    );
    const { check } = result;
    output.print(checkText(check));
    if (check.gradients) output.print(gradientText(check.gradients));
    if (check.passed) printCase(result, options, output);
    else output.print("The check failed; a wrong result is not timed.");
  }
  output.result({ backend: backend.name, device: backend.device, seed, ...shape, repeats, cases });
  return cases.every(({ check }) => check.passed);
}

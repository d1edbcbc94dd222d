import type { Backend, FloatDType, MobaOptions, Routing } from "@moba-js/tensor";
import { count, duration, type Output, table } from "../output.js";
import { gaussians, generator } from "../random.js";
import { type AttentionTensors, checkRows, type Judged } from "../row-check.js";
import { median, timeRepeated } from "../timing.js";

/** Options of `moba bench attention`. */
export interface BenchAttentionOptions {
  readonly tokens: number;
  readonly heads: number;
  /** As many as `heads` when not given. */
  readonly kvHeads?: number;
  readonly dim: number;
  readonly blockSize: number;
  readonly topK: number;
  readonly dtype: FloatDType;
  readonly repeats: number;
  readonly seed: number;
}

const CHECKED_ROWS = 16;

/** One row of the result. */
interface Stage {
  readonly name: "centroids" | "route" | "attend" | "moba" | "dense";
  readonly label: string;
  readonly run: () => unknown;
}

/** A stage's milliseconds, run by run. */
interface TimedStage extends Stage {
  readonly samples: readonly number[];
}

const stagesOf = (
  backend: Backend,
  { q, k, v }: AttentionTensors,
  routing: Routing,
  options: MobaOptions,
): Stage[] => [
  { name: "centroids", label: "  centroids", run: () => backend.centroids(k, options) },
  { name: "route", label: "  route, its own centroids included", run: () => backend.route(q, k, options) },
  { name: "attend", label: "  attend", run: () => backend.attend(q, k, v, routing) },
  { name: "moba", label: "MoBA forward", run: () => backend.moba(q, k, v, options) },
  { name: "dense", label: "dense forward", run: () => backend.attention(q, k, v) },
];

async function timeStages(
  backend: Backend,
  stages: readonly Stage[],
  repeats: number,
  output: Output,
): Promise<TimedStage[]> {
  using progress = output.progress("bench attention", stages.length);
  const timed: TimedStage[] = [];
  for (const stage of stages) {
    timed.push({ ...stage, samples: await timeRepeated(backend, stage.run, repeats) });
    progress.step(stage.name);
  }
  return timed;
}

/**
 * `moba bench attention`: causal MoBA against dense attention of one sequence on fresh random inputs. A result is checked
 * against the oracle, on sampled rows, before anything is timed.
 * @returns whether the check passed; nothing is timed when not.
 */
export async function benchAttention(
  backend: Backend,
  options: BenchAttentionOptions,
  output: Output,
): Promise<boolean> {
  const { tokens, heads, kvHeads = heads, dim: headDim, blockSize, topK, dtype, repeats, seed } = options;
  const random = generator("bench attention", seed);
  const tensor = (rows: number) =>
    backend.tensor(gaussians(random, tokens * rows * headDim), [tokens, rows, headDim], dtype);
  using q = tensor(heads);
  using k = tensor(kvHeads);
  using v = tensor(kvHeads);

  const check = await checkRows(backend, { q, k, v }, { blockSize, topK }, CHECKED_ROWS, random);
  const shape = { tokens, heads, kvHeads, headDim, blockSize, topK, dtype };
  const setup = { backend: backend.name, device: backend.device, seed, ...shape, repeats, check };
  const against = ({ error, bound }: Judged) =>
    `${error.toExponential(1)} (at most ${bound.toExponential(1)})`;
  output.print(`attention on ${backend.name} (${backend.device}), seed ${seed}`);
  output.print(
    `N = ${count(tokens)}, H = ${heads}, Hkv = ${kvHeads}, d = ${headDim}, B = ${blockSize}, k = ${topK}, ` +
      `${dtype}, causal, forward`,
  );
  output.print(
    `checked on ${check.rows} rows: dense ${against(check.dense)}, MoBA ${against(check.moba)}, ` +
      `routing ${against(check.routing)}`,
  );
  if (!check.passed) {
    output.print("The check failed; a wrong result is not timed.");
    output.result(setup);
    return false;
  }

  using routing = backend.route(q, k, { blockSize, topK });
  const stages = stagesOf(backend, { q, k, v }, routing, { blockSize, topK });
  const timed = await timeStages(backend, stages, repeats, output);
  const medians = Object.fromEntries(timed.map(({ name, samples }) => [name, median(samples)]));
  const ratio = medians.dense / medians.moba;
  const rows = timed.map(({ label, samples }) =>
    [label].concat([median(samples), Math.min(...samples), Math.max(...samples)].map(duration)),
  );
  output.print();
  output.print(table([[`of ${repeats} runs`, "median", "least", "most"], ...rows]));
  output.print();
  output.print(`dense / MoBA = ${ratio.toFixed(2)}`);
  const samples = Object.fromEntries(timed.map((stage) => [stage.name, stage.samples]));
  output.result({ ...setup, samples, median: medians, ratio });
  return true;
}

import type { Backend, FloatDType } from "@moba-js/tensor";
import { count, duration, type Output, table } from "../output.js";
import { gaussians, generator } from "../random.js";
import { checkRows, type Judged } from "../row-check.js";
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
  const { tokens, heads, kvHeads = heads, dim, blockSize, topK, dtype, repeats, seed } = options;
  const random = generator("bench attention", seed);
  const tensor = (count: number) =>
    backend.tensor(gaussians(random, tokens * count * dim), [tokens, count, dim], dtype);
  using q = tensor(heads);
  using k = tensor(kvHeads);
  using v = tensor(kvHeads);

  const check = await checkRows(backend, { q, k, v }, { blockSize, topK }, CHECKED_ROWS, random);
  const head = {
    backend: backend.name,
    device: backend.device,
    seed,
    tokens,
    heads,
    kvHeads,
    headDim: dim,
    blockSize,
    topK,
    dtype,
    check,
  };
  output.print(`attention on ${backend.name} (${backend.device}), seed ${seed}`);
  output.print(
    `N = ${count(tokens)}, H = ${heads}, Hkv = ${kvHeads}, d = ${dim}, B = ${blockSize}, k = ${topK}, ${dtype}, causal, forward`,
  );
  const against = ({ error, bound }: Judged) =>
    `${error.toExponential(1)} (at most ${bound.toExponential(1)})`;
  output.print(
    `checked on ${check.rows} rows: dense ${against(check.dense)}, MoBA ${against(check.moba)}, routing ${against(check.routing)}`,
  );
  if (!check.passed) {
    output.print("The check failed; a wrong result is not timed.");
    output.result({ ...head, samples: null, median: null, ratio: null });
    return false;
  }

  using routing = backend.route(q, k, { blockSize, topK });
  const jobs = {
    centroids: () => backend.centroids(k, { blockSize }),
    route: () => backend.route(q, k, { blockSize, topK }),
    attend: () => backend.attend(q, k, v, routing),
    moba: () => backend.moba(q, k, v, { blockSize, topK }),
    dense: () => backend.attention(q, k, v),
  };
  const names = Object.keys(jobs) as (keyof typeof jobs)[];
  const progress = output.progress("bench attention", names.length);
  const samples: Partial<Record<keyof typeof jobs, number[]>> = {};
  for (const name of names) {
    samples[name] = await timeRepeated(backend, jobs[name], repeats);
    progress.step(name);
  }
  progress.stop();
  const medians = Object.fromEntries(names.map((name) => [name, median(samples[name] ?? [])]));
  const ratio = medians.dense / medians.moba;
  const what: Record<keyof typeof jobs, string> = {
    centroids: "  centroids",
    route: "  route, its own centroids included",
    attend: "  attend",
    moba: "MoBA forward",
    dense: "dense forward",
  };
  const rows = names.map((name) => {
    const times = samples[name] ?? [];
    return [what[name], duration(medians[name]), duration(Math.min(...times)), duration(Math.max(...times))];
  });
  output.print();
  output.print(table([[`of ${repeats} runs`, "median", "least", "most"], ...rows]));
  output.print();
  output.print(`dense / MoBA = ${ratio.toFixed(2)}`);
  output.result({ ...head, repeats, samples, median: medians, ratio });
  return true;
}

import {
  type GlobalAttention,
  layerAttention,
  type ModelConfig,
  type PackedTokens,
  PRESETS,
  type PresetName,
  parameterCount,
  Trainer,
  Transformer,
} from "@moba-js/model";
import { type Backend, cuSeqlensFromLengths, type FloatDType } from "@moba-js/tensor";
import { isMeasured } from "../measured-backend.js";
import { count, duration, type Output, percent, table } from "../output.js";
import { type Generator, generator, integer } from "../random.js";
import { attentionWork, leastTime } from "../roofline.js";
import { median } from "../timing.js";

/** Options of `moba bench train`. */
export interface BenchTrainOptions {
  readonly preset: PresetName;
  /** Of every second layer. */
  readonly attention: GlobalAttention["kind"];
  /** Tokens of a sequence, one case for each. */
  readonly context: readonly number[];
  /** Sequences of a step. */
  readonly batch: number;
  /** dtype of activations. */
  readonly compute: FloatDType;
  readonly recompute: boolean;
  /** Steps that are timed. */
  readonly steps: number;
  readonly seed: number;
}

/** Steps that are not timed: the first loads kernels, the second captures where the backend can. */
const WARM_STEPS = 4;
/** Steps by themselves, for the host's time. */
const HOST_STEPS = 5;
const LEARNING_RATE = 3e-4;

/** FLOP of a step: matrix products and attention, forward and backward (twice the work; 2.5 times for attention). */
export function trainingFlop(config: ModelConfig, context: number, batch: number): number {
  const { heads, kvHeads, headDim, layers } = config;
  const products = (scores: number) => 2 * headDim * heads * batch * scores;
  let flop = 6 * parameterCount(config) * batch * context;
  for (let layer = 0; layer < layers; layer++) {
    const attention = layerAttention(config, layer);
    const blocks = attention.kind === "moba" ? attention : { blockSize: context, topK: 1 };
    const work = attentionWork({ ...blocks, batch, tokens: context, heads, kvHeads, headDim, dtype: "bf16" });
    if (attention.kind === "window") {
      const full = Math.min(attention.window, context);
      flop += 3.5 * 2 * products((full * (full + 1)) / 2 + (context - full) * full);
    } else if (attention.kind === "dense") flop += 3.5 * work.dense.flop;
    else flop += work.route.flop + 3.5 * work.attend.flop;
  }
  return flop;
}

/** Sequences of random tokens, one after the other. */
function randomTokens(random: Generator, vocabulary: number, context: number, batch: number): PackedTokens {
  const text = Int32Array.from({ length: batch * context + 1 }, () => integer(random, vocabulary));
  const cuSeqlens = cuSeqlensFromLengths(Array.from({ length: batch }, () => context));
  return { tokens: text.slice(0, -1), targets: text.slice(1), cuSeqlens };
}

/** One case: steps on one batch. */
async function runCase(model: Transformer, context: number, options: BenchTrainOptions) {
  const { batch, recompute, seed, compute, steps } = options;
  const { backend, config } = model;
  const random = generator("bench train", context, batch, seed);
  const tokens = randomTokens(random, config.vocabulary, context, batch);
  const schedule = { learningRate: LEARNING_RATE, warmupSteps: 1 };
  const trainer = new Trainer(model, { steps: WARM_STEPS + steps + HOST_STEPS, recompute, ...schedule });
  try {
    const losses: number[] = [];
    for (let step = 0; step < WARM_STEPS; step++) losses.push((await trainer.train([tokens])).loss);
    const calls: number[] = [];
    const enqueue = () => {
      const called = performance.now();
      const running = trainer.train([tokens]);
      calls.push(performance.now() - called);
      running.catch(() => undefined); // it is awaited below, but the one before may fail first
      return running;
    };
    const start = performance.now();
    let before = Promise.resolve<{ loss: number } | undefined>(undefined);
    for (let step = 0; step < steps; step++) {
      const running = enqueue();
      await before; // one step is enqueued ahead
      before = running;
    }
    losses.push((await before)?.loss ?? Number.NaN);
    const milliseconds = (performance.now() - start) / steps;
    const aheadMilliseconds = median(calls.splice(0));
    for (let step = 0; step < HOST_STEPS; step++) await enqueue();
    const hostMilliseconds = median(calls);
    const flop = trainingFlop(config, context, batch);
    const least = leastTime(backend.device, compute, { flop, bytes: 0 });
    return {
      context,
      milliseconds,
      tokensPerSecond: (1000 * batch * context) / milliseconds,
      flop,
      shareOfPeak: least === undefined ? null : least / milliseconds,
      /** What the host does for a step: the time of the call when the device waits for it. */
      hostMilliseconds,
      shareOfHost: hostMilliseconds / milliseconds,
      /** The time of the call while the step before runs: it may wait for room in the device's queue. */
      aheadMilliseconds,
      loss: { first: losses[0], last: losses[losses.length - 1] },
      ...(isMeasured(backend) && { peakBytes: backend.deviceMemory().peakUsedBytes }),
    };
  } finally {
    trainer.dispose();
  }
}

/**
 * `moba bench train`: whole training steps of a preset on random tokens, gradients and AdamW included. The next step is enqueued while
 * one runs, as in training.
 * @returns whether the loss fell, as it must on tokens that repeat
 */
export async function benchTrain(
  backend: Backend,
  options: BenchTrainOptions,
  output: Output,
): Promise<boolean> {
  const { preset, attention, batch, compute, steps, seed, recompute } = options;
  const dense = attention === "dense" && ({ kind: "dense" } as const);
  const config: ModelConfig = { ...PRESETS[preset], ...(dense && { attention: dense }) };
  const model = Transformer.initialize(backend, config, { seed, compute });
  const cases: Awaited<ReturnType<typeof runCase>>[] = [];
  try {
    using progress = output.progress("bench train", options.context.length);
    for (const context of options.context) {
      if (isMeasured(backend)) backend.resetPeakMemory();
      cases.push(await runCase(model, context, options));
      progress.step(`context ${count(context)}`);
    }
  } finally {
    model.dispose();
  }
  output.print(`training on ${backend.name} (${backend.device}), seed ${seed}`);
  output.print(
    `${preset}: ${count(parameterCount(config))} parameters, ${config.attention.kind}, ${compute}; ${batch} sequence(s) a step${recompute ? ", recomputing" : ""}`,
  );
  output.print();
  output.print(
    table([
      [`mean of ${steps} steps`, "a step", "tokens/s", "of peak", "host", "of a step", "memory", "loss"],
      ...cases.map((result) => [
        `context ${count(result.context)}`,
        duration(result.milliseconds),
        count(Math.round(result.tokensPerSecond)),
        result.shareOfPeak === null ? "" : percent(result.shareOfPeak),
        duration(result.hostMilliseconds),
        percent(result.shareOfHost),
        result.peakBytes === undefined ? "" : `${(result.peakBytes / 2 ** 30).toFixed(1)} GiB`,
        `${result.loss.first.toFixed(3)} → ${result.loss.last.toFixed(3)}`,
      ]),
    ]),
  );
  const shape = { preset, attention: config.attention, batch, compute, recompute };
  output.result({ backend: backend.name, device: backend.device, seed, ...shape, steps, cases });
  return cases.every(({ loss }) => loss.last < loss.first);
}

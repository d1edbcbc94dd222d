import { appendFile, mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { ArgumentError, type Backend, checkPositiveInteger, type FloatDType } from "@moba-js/tensor";
import { checkConfig, type ModelConfig } from "../config.js";
import { meanLoss } from "../loss.js";
import { lossPage } from "../loss-page.js";
import {
  type DataPosition,
  type DocumentSource,
  type PackedTokens,
  packedBatches,
  START,
} from "../packing.js";
import type { Tokenizer } from "../tokenizer.js";
import { type StepMetrics, Trainer, type TrainingOptions } from "../trainer.js";
import { Transformer } from "../transformer.js";
import { replaceFile } from "./atomic.js";
import {
  listCheckpoints,
  loadConfig,
  loadModel,
  loadMoments,
  loadRunState,
  saveCheckpoint,
} from "./checkpoint.js";

/** A line of `metrics.jsonl`. */
export interface RunMetrics extends StepMetrics {
  /** Mean loss over the held-out documents after the step, nats a token; on steps that evaluate. */
  readonly heldOutLoss?: number;
}

/** A training run that goes on where it stopped. */
export interface RunOptions {
  /** Folder of the run: checkpoints, `metrics.jsonl`, `loss.html`. */
  readonly folder: string;
  readonly config: ModelConfig;
  readonly tokenizer: Tokenizer;
  readonly source: DocumentSource;
  /** Documents to evaluate on. */
  readonly heldOut?: DocumentSource;
  /** Batches of held-out documents that an evaluation reads. Default 8. */
  readonly heldOutBatches?: number;
  readonly training: TrainingOptions;
  /** Tokens of a batch. */
  readonly batchTokens: number;
  /** The most tokens of a sequence. Default: `batchTokens`. */
  readonly sequenceTokens?: number;
  /** Batches whose gradients make a step. Default 1. */
  readonly accumulate?: number;
  /** Seed of parameters and data order. Default 0. */
  readonly seed?: number;
  /** dtype of activations; parameters and moments are float32. Default `"f32"`. */
  readonly compute?: FloatDType;
  /** Steps from one checkpoint to the next; there is one at the end too. Default 100. */
  readonly saveEvery?: number;
  /** Steps from one evaluation to the next; there is one at the end too. Default 100. */
  readonly evaluateEvery?: number;
  /** Is told of each step. */
  readonly onStep?: (metrics: RunMetrics) => void;
}

/**
 * Trains a model to the end of a run, from the newest checkpoint in its folder or from the start. On a backend that repeats
 * results bit for bit, a run that was stopped at any moment ends with the weights of one that was not.
 * @returns the trained model, float32, the caller's
 * @throws ArgumentError when the folder holds a run of another model; FormatError when its files are broken
 */
export async function runTraining(backend: Backend, options: RunOptions): Promise<Transformer> {
  const { folder, training, saveEvery = 100, evaluateEvery = 100, accumulate = 1 } = options;
  checkPositiveInteger("saveEvery", saveEvery);
  checkPositiveInteger("evaluateEvery", evaluateEvery);
  checkPositiveInteger("accumulate", accumulate);
  const started = await startOrResume(backend, options);
  const { trainer } = started;
  let { position } = started;
  await mkdir(folder, { recursive: true });
  const metricsFile = join(folder, "metrics.jsonl");
  const history = await readHistory(metricsFile, trainer.step);
  await replaceFile(metricsFile, history.map(toLine).join(""));
  const batches = packedBatches(packing(options, options.source), position);
  const due = (step: number, every: number) => step % every === 0 || step === training.steps;
  const finish = async (metrics: StepMetrics): Promise<void> => {
    const { step } = metrics;
    const heldOut = due(step, evaluateEvery) ? await heldOutLoss(trainer.model, options) : {};
    const line = { ...metrics, ...heldOut };
    history.push(line);
    // Before the checkpoint: a line too many is dropped when the run goes on, one too few would be missing for good.
    await appendFile(metricsFile, toLine(line));
    if (due(step, saveEvery)) {
      await saveCheckpoint(folder, trainer, position);
      await replaceFile(join(folder, "loss.html"), lossPage(history));
    }
    options.onStep?.(line);
  };
  /** The step before, of which the figures are read while the device is busy with the next one. */
  let before: Promise<StepMetrics> | undefined;
  while (trainer.step < training.steps) {
    const step: PackedTokens[] = [];
    while (step.length < accumulate) {
      const { value } = await batches.next();
      step.push(value.batch);
      position = value.next;
    }
    const running = trainer.train(step);
    running.catch(() => undefined); // it is awaited below, but the one before may fail first
    if (before) await finish(await before);
    before = running;
    if (due(trainer.step, evaluateEvery) || due(trainer.step, saveEvery)) {
      await finish(await before);
      before = undefined;
    }
  }
  trainer.dispose();
  return trainer.model;
}

const packing = ({ tokenizer, batchTokens, sequenceTokens, seed }: RunOptions, source: DocumentSource) => ({
  source,
  tokenizer,
  batchTokens,
  sequenceTokens: sequenceTokens ?? batchTokens,
  seed: seed ?? 0,
});

async function startOrResume(
  backend: Backend,
  { folder, config, training, seed = 0, compute = "f32" }: RunOptions,
): Promise<{ trainer: Trainer; position: DataPosition }> {
  const newest = (await listCheckpoints(folder)).at(-1);
  if (!newest) {
    const model = Transformer.initialize(backend, config, { seed, compute });
    return { trainer: new Trainer(model, training), position: START };
  }
  const stored = await loadConfig(newest);
  if (JSON.stringify(stored) !== JSON.stringify(checkConfig(config))) {
    throw new ArgumentError("folder", folder, "a new folder, or one with a run of the same config");
  }
  const model = await loadModel(backend, newest, { compute });
  const { step, position } = await loadRunState(newest);
  const moments = await loadMoments(backend, newest, config);
  return { trainer: new Trainer(model, training, { step, moments }), position };
}

async function heldOutLoss(model: Transformer, options: RunOptions): Promise<{ heldOutLoss?: number }> {
  const { heldOut, heldOutBatches = 8 } = options;
  if (!heldOut) return {};
  async function* some(source: DocumentSource): AsyncIterable<PackedTokens> {
    let left = heldOutBatches;
    for await (const { batch } of packedBatches(packing(options, source))) {
      yield batch;
      if (--left === 0) return;
    }
  }
  return { heldOutLoss: (await meanLoss(model, some(heldOut))).loss };
}

const toLine = (metrics: RunMetrics): string => `${JSON.stringify(metrics)}\n`;

/** The metrics of the steps up to `step`. What was written later, or cut off by the end of a process, counts as not written. */
async function readHistory(path: string, step: number): Promise<RunMetrics[]> {
  const lines = (await readFile(path, "utf8").catch(() => "")).split("\n");
  const parsed = lines.flatMap((line) => {
    try {
      return [JSON.parse(line) as RunMetrics];
    } catch {
      return [];
    }
  });
  return parsed.filter((metrics) => metrics.step <= step);
}

import { copyFile, mkdir } from "node:fs/promises";
import { extname, join } from "node:path";
import {
  ByteTokenizer,
  type DocumentSource,
  type GlobalAttention,
  type ModelConfig,
  memorySource,
  PRESETS,
  type PresetName,
  parameterCount,
} from "@moba-js/model";
import {
  holdOut,
  jsonlSource,
  loadTokenizer,
  parquetSource,
  runTraining,
  textSource,
} from "@moba-js/model/node";
import type { Backend, FloatDType } from "@moba-js/tensor";
import { TOKENIZER_FILE } from "../model-folder.js";
import { count, type Output } from "../output.js";
import { mobyDick } from "../text.js";

/** Options of `moba train`. */
export interface TrainOptions {
  readonly run: string;
  readonly preset: PresetName;
  readonly attention: GlobalAttention["kind"];
  readonly convWidth?: number;
  /** A file of documents; Moby Dick when there is none. */
  readonly data?: string;
  readonly field: string;
  /** A tokenizer.json; bytes when there is none. */
  readonly tokenizer?: string;
  readonly steps: number;
  readonly batchTokens: number;
  readonly sequenceTokens: number;
  readonly accumulate: number;
  readonly learningRate: number;
  readonly warmupSteps: number;
  readonly compute: FloatDType;
  readonly recompute: boolean;
  readonly holdOut: number;
  readonly saveEvery: number;
  readonly evaluateEvery: number;
  readonly seed: number;
}

/** Characters of a document that a book is cut into. */
const PIECE = 4096;

function sourceOf({ data, field }: TrainOptions): DocumentSource {
  if (data === undefined) {
    const book = mobyDick();
    const text = book.sections.map((section) => `${section.title}\n\n${section.text}`).join("\n\n");
    return memorySource(book.name, text.match(new RegExp(`.{1,${PIECE}}`, "gs")) ?? []);
  }
  const format = extname(data).toLowerCase();
  if (format === ".jsonl") return jsonlSource(data, field);
  return format === ".parquet" ? parquetSource(data, field) : textSource(data, PIECE);
}

function configOf({ preset, attention, convWidth }: TrainOptions, vocabulary: number): ModelConfig {
  const config = { ...PRESETS[preset], vocabulary };
  if (attention === "dense") return { ...config, attention: { kind: "dense" } };
  if (config.attention.kind === "dense" || convWidth === undefined) return config;
  return { ...config, attention: { ...config.attention, convWidth } };
}

/**
 * `moba train`: trains a model on every document that is not held out.
 * @throws FormatError for data that cannot be read; ArgumentError when the folder holds a run of another model.
 */
export async function train(backend: Backend, options: TrainOptions, output: Output): Promise<void> {
  const { run, steps, learningRate, warmupSteps, recompute } = options;
  await mkdir(run, { recursive: true });
  const tokenizer =
    options.tokenizer === undefined ? new ByteTokenizer() : await loadTokenizer(options.tokenizer);
  if (options.tokenizer !== undefined) await copyFile(options.tokenizer, join(run, TOKENIZER_FILE));
  const config = configOf(options, tokenizer.vocabulary);
  const source = sourceOf(options);
  const { training, heldOut } = holdOut(source, options.holdOut);
  output.print(
    `${options.preset}: ${count(parameterCount(config))} parameters, ${config.attention.kind}; ${source.name}`,
  );
  let loss = Number.NaN;
  let heldOutLoss: number | undefined;
  using progress = output.progress("train", steps);
  const model = await runTraining(backend, {
    folder: run,
    config,
    tokenizer,
    source: training,
    heldOut,
    heldOutBatches: 32,
    training: { steps, learningRate, warmupSteps, recompute },
    batchTokens: options.batchTokens,
    sequenceTokens: options.sequenceTokens,
    accumulate: options.accumulate,
    seed: options.seed,
    compute: options.compute,
    saveEvery: options.saveEvery,
    evaluateEvery: options.evaluateEvery,
    onStep: (metrics) => {
      loss = metrics.loss;
      heldOutLoss = metrics.heldOutLoss ?? heldOutLoss;
      const kept = heldOutLoss === undefined ? "" : `, held out ${heldOutLoss.toFixed(3)}`;
      progress.step(`step ${metrics.step}, loss ${loss.toFixed(3)}${kept}`);
    },
  });
  model.dispose();
  output.print(`loss ${loss.toFixed(3)}, held out ${heldOutLoss?.toFixed(3)} nats a token`);
  output.print(`checkpoints, metrics.jsonl and loss.html are in ${run}`);
  output.result({ run, steps, parameters: parameterCount(config), loss, heldOutLoss });
}

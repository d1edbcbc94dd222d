import {
  type Evaluation,
  evaluationPage,
  inspectRouting,
  meanLoss,
  memorySource,
  type NeedleCell,
  type NeedleTask,
  type PackedTokens,
  packedBatches,
  sweepNeedles,
  type Tokenizer,
} from "@moba-js/model";
import type { Backend } from "@moba-js/tensor";
import { writeAtomically } from "../file.js";
import { openModel } from "../model-folder.js";
import { count, type Output, percent, table } from "../output.js";
import { mobyDick, readText } from "../text.js";

/** Options of `moba eval`. */
export interface EvaluateOptions {
  readonly model: string;
  /** A text file; Moby Dick when there is none. */
  readonly text?: string;
  readonly tokens: number;
  readonly sequenceTokens: number;
  readonly needle?: NeedleTask[];
  readonly lengths: number[];
  readonly depths: number[];
  readonly samples: number;
  readonly out: string;
  readonly seed: number;
}

/** The first `tokens` tokens of a text, in sequences of at most `sequenceTokens`. */
async function* firstTokens(
  text: string,
  tokenizer: Tokenizer,
  { tokens, sequenceTokens, seed }: EvaluateOptions,
): AsyncIterable<PackedTokens> {
  const source = memorySource("text", [text]);
  const batches = packedBatches({ source, tokenizer, batchTokens: sequenceTokens, sequenceTokens, seed });
  for (let left = tokens; left > 0; left -= sequenceTokens) yield (await batches.next()).value.batch;
}

/**
 * `moba eval`: what a model knows of a text, whether it finds needles in it, and what its routing finds.
 * @throws FormatError when the folder holds no model, or the text cannot be read.
 */
export async function evaluate(backend: Backend, options: EvaluateOptions, output: Output): Promise<void> {
  const { model, tokenizer, source } = await openModel(backend, options.model);
  const { name, sections } = options.text === undefined ? mobyDick() : await readText(options.text);
  const text = sections.map((section) => section.text).join("\n\n");
  const result = await writeReport(options.out, async () => {
    const loss = await meanLoss(model, firstTokens(text, tokenizer, options));
    output.print(
      `${source} on ${name}: perplexity ${loss.perplexity.toFixed(3)} over ${count(loss.tokens)} tokens`,
    );
    const needles: NeedleCell[] = [];
    const { needle: tasks = [], lengths, depths, samples, seed } = options;
    using progress = output.progress("needles", tasks.length * lengths.length * depths.length);
    for (const task of tasks) {
      for await (const cell of sweepNeedles(model, {
        task,
        text,
        tokenizer,
        lengths,
        depths,
        samples,
        seed,
      })) {
        needles.push(cell);
        progress.step(
          `${task}, ${cell.length} tokens, depth ${cell.depth}: ${cell.correct} of ${cell.samples}`,
        );
      }
    }
    const isRouted = model.config.attention.kind === "moba" && model.config.layers > 1;
    const tokens = tokenizer.encode(text).subarray(0, options.sequenceTokens);
    return { loss, needles, ...(isRouted && { routing: await inspectRouting(model, tokens) }) };
  });
  for (const task of new Set(result.needles?.map((cell) => cell.task))) {
    const cells = result.needles?.filter((cell) => cell.task === task) ?? [];
    const right = cells.reduce((sum, { correct }) => sum + correct, 0);
    const all = cells.reduce((sum, cell) => sum + cell.samples, 0);
    output.print(`${task}: ${right} of ${all} answers right`);
  }
  if (result.routing) {
    const rows = result.routing.map(({ layer, head, attentionRecall, randomRecall, estimate }) => [
      `${layer}.${head}`,
      percent(attentionRecall),
      percent(randomRecall),
      estimate ? estimate.empiricalSnr.value.toFixed(2) : "–",
    ]);
    output.print(table([["layer.head", "attention found", "at random", "SNR"], ...rows]));
  }
  output.print(`report: ${options.out}`);
  output.result({ model: source, text: name, ...result });
  model.dispose();
}

/** Works an evaluation out and writes its page; a place that cannot be written shows first. */
async function writeReport(path: string, work: () => Promise<Evaluation>): Promise<Evaluation> {
  let evaluation: Evaluation = {};
  await writeAtomically(path, async () => {
    evaluation = await work();
    return evaluationPage(evaluation);
  });
  return evaluation;
}

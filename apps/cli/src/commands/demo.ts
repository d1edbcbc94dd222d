import { resolve } from "node:path";
import type { Backend } from "@moba-js/tensor";
import { Directions } from "../directions.js";
import { writeAtomically } from "../file.js";
import { count, duration, type Output, percent, table } from "../output.js";
import { type DemoResult, renderReport } from "../report.js";
import { type Cell, explain, type Grid, measureCell, settingsOf } from "../sweep.js";
import { loadText, type Text } from "../text.js";
import { type AttentionTiming, timeSelfAttention } from "../timing.js";

/** Options of `moba demo`. */
export interface DemoOptions {
  /** A text file; Moby Dick when there is none. */
  readonly text?: string;
  /** Where the report goes. */
  readonly out: string;
  readonly seed: number;
  /** How many words of the text to use, from its beginning. */
  readonly words: number;
}

const HEAD_DIM = 32;
const TOP_K = 4;
const NEEDLES = 200;

/** Chosen so that hit rates run from near chance to near certain, and up to blocks in which words cluster. */
const SWEEP: readonly Grid[] = [
  { blockSizes: [16, 24, 32, 48, 64], needleWords: [1, 2, 4, 6, 8, 12] },
  { blockSizes: [128, 256, 512], needleWords: [1, 4, 8, 12] },
];

/** The fewest words that a text must have. */
const FEWEST_WORDS = 8192;

const TIMING = { headDim: 64, blockSize: 128, topK: 8, repeats: 3, budget: 5 };
const TIMED_TOKENS = [8192, 16384];

/** Runs both sweeps and the timings on a text. */
async function measure(
  backend: Backend,
  text: Text,
  { seed, words: most }: DemoOptions,
  output: Output,
): Promise<DemoResult> {
  const started = performance.now();
  const words = text.tokens.slice(0, most).map(({ word }) => word);
  const directions = new Directions(seed, HEAD_DIM);
  const options = { seed, topK: TOP_K, needles: NEEDLES, tokens: words.length };
  const lengths = TIMED_TOKENS.filter((tokens) => tokens <= words.length);
  const settings = SWEEP.flatMap(settingsOf);
  using progress = output.progress("demo", settings.length + lengths.length);

  const cells: Cell[] = [];
  for (const setting of settings) {
    const cell = await measureCell(backend, words, directions, setting, options);
    cells.push(cell);
    progress.step(`B = ${cell.blockSize}, m = ${cell.needleWords}: ${cell.hits} of ${cell.needles} found`);
  }
  const timeAll = async (): Promise<AttentionTiming[]> => {
    const rows: AttentionTiming[] = [];
    const { headDim } = TIMING;
    const timed = new Directions(seed, headDim);
    for (const tokens of lengths) {
      using x = backend.tensor(timed.rows(words.slice(0, tokens)), [tokens, 1, headDim]);
      rows.push(await timeSelfAttention(backend, x, TIMING));
      progress.step(`attention over ${count(tokens)} tokens timed`);
    }
    return rows;
  };

  const rows = await timeAll();
  return {
    text: { name: text.name, words: words.length },
    backend: backend.name,
    device: backend.device,
    seed,
    headDim: HEAD_DIM,
    topK: TOP_K,
    needles: NEEDLES,
    cells,
    inside: cells.filter(({ inside }) => inside).length,
    explanations: cells.filter(({ inside }) => !inside).map(explain),
    timing: { headDim: TIMING.headDim, blockSize: TIMING.blockSize, topK: TIMING.topK, rows },
    seconds: (performance.now() - started) / 1000,
  };
}

function cellRows(cells: readonly Cell[]): string {
  const head = [
    "B",
    "m",
    "blocks",
    "SNR",
    "predicted",
    "99 % hits",
    "hits",
    "measured",
    "",
    "variance",
    "routed",
    "dense",
    "keys read",
  ];
  const rows = cells.map(({ predicted, retrieval, ...cell }) => [
    String(cell.blockSize),
    String(cell.needleWords),
    count(cell.blocks),
    cell.snr.toFixed(2),
    percent(predicted.probability),
    `${predicted.low}-${predicted.high}`,
    String(cell.hits),
    percent(cell.hits / cell.needles),
    cell.inside ? "" : "outside",
    cell.varianceRatio.toFixed(2),
    percent(retrieval.routed / cell.needles),
    percent(retrieval.dense / cell.needles),
    percent(retrieval.keysRead),
  ]);
  return table([head, ...rows], []);
}

function printResult(result: DemoResult, path: string, output: Output): void {
  const { text, cells, inside, explanations, timing } = result;
  output.print(`Block routing on ${text.name}, its first ${count(text.words)} words`);
  output.print(
    `backend ${result.backend} (${result.device}), seed ${result.seed}, d = ${result.headDim}, k = ${result.topK}, ` +
      `${result.needles} needles of m words a cell`,
  );
  output.print();
  output.print(cellRows(cells));
  output.print();
  output.print(
    "predicted, measured: the needle's block is among the k best. variance: of noise blocks' scores, times dB (model: 1).",
  );
  output.print("routed, dense: a word of the needle gets the highest attention weight.");
  output.print();
  output.print(`${inside} of ${cells.length} cells lie inside the prediction's 99 % interval.`);
  for (const sentence of explanations) output.print(`- ${sentence}`);
  output.print();
  output.print(
    `Causal self-attention, one head of ${timing.headDim}, B = ${timing.blockSize}, k = ${timing.topK} (medians):`,
  );
  const rows = timing.rows.map(({ tokens, dense, moba, runs }) => [
    count(tokens),
    duration(dense),
    duration(moba),
    `${(dense / moba).toFixed(1)} x`,
    `${runs.dense}, ${runs.moba}`,
  ]);
  output.print(table([["tokens", "dense", "MoBA", "dense / MoBA", "runs"], ...rows], []));
  output.print();
  output.print(`Report: ${path} (${result.seconds.toFixed(0)} s)`);
}

/**
 * `moba demo`: block routing on a real text, theory against measurement.
 * @throws FormatError for a text that cannot be used or a report that cannot be written.
 */
export async function demo(backend: Backend, options: DemoOptions, output: Output): Promise<void> {
  const text = await loadText(options.text, FEWEST_WORDS);
  const path = resolve(options.out);
  let result: DemoResult | undefined;
  await writeAtomically(path, async () => {
    result = await measure(backend, text, options, output);
    return renderReport(result);
  });
  if (result === undefined) return;
  printResult(result, path, output);
  output.result({ ...result, report: path });
}

import { resolve } from "node:path";
import type { Backend } from "@moba-js/tensor";
import { Directions } from "../directions.js";
import { writeAtomically } from "../file.js";
import { count, duration, type Output, percent, table } from "../output.js";
import { type DemoResult, renderReport } from "../report.js";
import { type Cell, explain, type Grid, measureCell, type SweepOptions, settingsOf } from "../sweep.js";
import { loadText, type Text } from "../text.js";
import { type AttentionTiming, timeSelfAttention } from "../timing.js";

/** Options of `moba demo`. */
export interface DemoOptions {
  /** A text file; Moby Dick when there is none. */
  readonly text?: string;
  /** Where the report goes. */
  readonly out: string;
  readonly seed: number;
}

const HEAD_DIM = 32;
const TOP_K = 4;
const NEEDLES = 200;

/** Chosen so that hit rates run from near chance to near certain. */
const SWEEP: Grid = { blockSizes: [16, 24, 32, 48, 64], needleWords: [1, 2, 4, 6, 8, 12] };

/** Blocks so large that the clustering of words shows. */
const LARGE_BLOCKS: Grid = { blockSizes: [128, 256, 512], needleWords: [1, 4, 8, 12] };

/** The fewest words that a text must have, and the most that are used. */
const FEWEST_WORDS = 8192;
const MOST_WORDS = 16384;

const TIMING = { headDim: 64, blockSize: 128, topK: 8, repeats: 3, budget: 5 };
const TIMED_TOKENS = [8192, 16384];

/** Runs both sweeps and the timings on a text. */
async function measure(backend: Backend, text: Text, seed: number, output: Output): Promise<DemoResult> {
  const started = performance.now();
  const words = text.tokens.slice(0, MOST_WORDS).map(({ word }) => word);
  const directions = new Directions(seed, HEAD_DIM);
  const common = { seed, topK: TOP_K, needles: NEEDLES, tokens: words.length };
  const lengths = TIMED_TOKENS.filter((tokens) => tokens <= words.length);
  const steps = [SWEEP, LARGE_BLOCKS].flatMap(settingsOf).length + lengths.length;
  using progress = output.progress("demo", steps);

  const sweep = async (grid: Grid, options: SweepOptions): Promise<Cell[]> => {
    const cells: Cell[] = [];
    for (const setting of settingsOf(grid)) {
      const cell = await measureCell(backend, words, directions, setting, options);
      cells.push(cell);
      progress.step(`B = ${cell.blockSize}, m = ${cell.needleWords}: ${cell.hits} of ${cell.needles} found`);
    }
    return cells;
  };
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

  const cells = await sweep(SWEEP, { ...common, attend: true });
  const largeBlocks = await sweep(LARGE_BLOCKS, { ...common, attend: false });
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
    largeBlocks,
    timing: { headDim: TIMING.headDim, blockSize: TIMING.blockSize, topK: TIMING.topK, rows },
    seconds: (performance.now() - started) / 1000,
  };
}

function cellRows(cells: readonly Cell[]): string {
  const head = ["B", "m", "blocks", "SNR", "predicted", "99 % hits", "hits", "measured", "", "variance"];
  const attendHead = ["routed", "dense", "keys read"];
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
    ...(retrieval
      ? [
          percent(retrieval.routed / cell.needles),
          percent(retrieval.dense / cell.needles),
          percent(retrieval.keysRead),
        ]
      : []),
  ]);
  const attended = cells.some(({ retrieval }) => retrieval !== undefined);
  return table([[...head, ...(attended ? attendHead : [])], ...rows], []);
}

function printResult(result: DemoResult, path: string, output: Output): void {
  const { text, cells, inside, explanations, largeBlocks, timing } = result;
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
    "Larger blocks, where the words of a text no longer pass for independent (not counted above):",
  );
  output.print(cellRows(largeBlocks));
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
    result = await measure(backend, text, options.seed, output);
    return renderReport(result);
  });
  if (result === undefined) return;
  printResult(result, path, output);
  output.result({ ...result, report: path });
}

import { binomialInterval } from "@moba-js/snr";
import { type Html, html } from "./html.js";
import { count, duration, percent } from "./output.js";
import { type Axis, band, COLORS, dot, type Frame, label, line, plot, whisker } from "./plot.js";
import { LEVEL } from "./prediction.js";
import type { Cell } from "./sweep.js";
import type { AttentionTiming } from "./timing.js";

/** Everything that `moba demo` found out. Plain JSON. */
export interface DemoResult {
  readonly text: { readonly name: string; readonly words: number };
  readonly backend: string;
  readonly device: string;
  readonly seed: number;
  readonly headDim: number;
  readonly topK: number;
  readonly needles: number;
  /** Cells of the sweep, and how many of them have their hits inside the prediction's interval. */
  readonly cells: readonly Cell[];
  readonly inside: number;
  /** One sentence or two for every cell outside. */
  readonly explanations: readonly string[];
  /** `d`, `B`, `k` and times of self-attention. */
  readonly timing: {
    readonly headDim: number;
    readonly blockSize: number;
    readonly topK: number;
    readonly rows: readonly AttentionTiming[];
  };
  readonly seconds: number;
}

const STYLE = `
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6675; --ground: #ffffff; --panel: #f5f6f8; --line: #dde1e7; --good: #1d7f4e; --bad: #c23a2b; --band: #4c7de022; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b4; --ground: #14181e; --panel: #1d232b; --line: #323a45; --good: #55c08a; --bad: #f07f70; --band: #6f9bf033; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 20px; margin: 44px 0 8px; }
p, li { max-width: 76ch; margin: 8px 0; }
.soft, figcaption { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; margin: 24px 0; }
.tiles div { background: var(--panel); border-radius: 8px; padding: 14px 16px; }
.tiles b { display: block; font-size: 26px; line-height: 1.25; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 24px; margin: 16px 0; }
figure { margin: 0; }
figcaption { font-size: 14px; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--soft); }
svg text.label { fill: currentColor; font-weight: 600; }
svg .grid { stroke: var(--line); }
svg .line { fill: none; stroke-width: 2; }
svg .dashed { stroke-dasharray: 5 4; }
svg .band { fill: var(--band); }
svg .whisker { stroke-width: 1.5; opacity: .55; }
svg .outlined { stroke: var(--bad); stroke-width: 2.5; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; width: 100%; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th[colspan] { text-align: center; color: var(--ink); }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
code { font: 14px ui-monospace, monospace; }`;

const unitAxis = (title: string): Axis => ({
  title,
  low: 0,
  high: 1,
  ticks: [0, 0.2, 0.4, 0.6, 0.8, 1],
  format: (value) => percent(value, 0),
});

/** Block sizes above this are where the words of a text no longer pass for independent. */
const LARGEST_PLAIN_BLOCK = 64;

const largeBlocksOf = (cells: readonly Cell[]): Cell[] =>
  cells.filter(({ blockSize }) => blockSize > LARGEST_PLAIN_BLOCK);

const blockSizeAxis = (cells: readonly Cell[]): Axis => {
  const sizes = [...new Set(cells.map(({ blockSize }) => blockSize))];
  return {
    title: "block size B",
    low: Math.min(...sizes),
    high: Math.max(...sizes),
    ticks: sizes,
    format: String,
    logarithmic: true,
  };
};

const rate = ({ hits, needles }: Cell): number => hits / needles;

const describe = (cell: Cell): string =>
  `B = ${cell.blockSize}, m = ${cell.needleWords}: predicted ${percent(cell.predicted.probability)}, measured ${percent(rate(cell))}`;

interface Series {
  readonly value: number;
  readonly color: string;
}

/** The distinct values of a property of cells, with a colour each. */
const series = (cells: readonly Cell[], of: (cell: Cell) => number): Series[] =>
  [...new Set(cells.map(of))].map((value, i) => ({ value, color: COLORS[i % COLORS.length] }));

const colorOf = (colors: readonly Series[], value: number): string =>
  colors.find((entry) => entry.value === value)?.color ?? "currentColor";

const DIAGONAL = [
  { x: 0, y: 0 },
  { x: 1, y: 1 },
];

/** The band that holds 99 % of measurements if the prediction is right, and the line of perfect agreement. */
function agreement(needles: number, frame: Frame): Html[] {
  const grid = Array.from({ length: 101 }, (_, i) => i / 100);
  const intervals = grid.map((probability) =>
    binomialInterval({ trials: needles, probability, level: LEVEL }),
  );
  const edge = (bound: "low" | "high") => grid.map((x, i) => ({ x, y: intervals[i][bound] / needles }));
  return [band(edge("low"), edge("high"), frame), line(DIAGONAL, frame, "var(--soft)")];
}

const legendOf = (colors: readonly Series[]): Html[] =>
  colors.map(({ value, color }) => html`<span style="color:${color}">●</span> B = ${value}&ensp;`);

/** Measured against predicted hit rates. */
function agreementPlot({ cells, needles }: DemoResult): Html {
  const colors = series(cells, ({ blockSize }) => blockSize);
  const drawing = plot(
    "Measured against predicted hit rate",
    unitAxis("predicted P(hit)"),
    unitAxis("measured hit rate"),
    (frame) => [
      ...agreement(needles, frame),
      ...cells.map((cell) => {
        const at = { x: cell.predicted.probability, y: rate(cell) };
        return dot(at, frame, colorOf(colors, cell.blockSize), describe(cell), !cell.inside);
      }),
    ],
  );
  return html`<figure>${drawing}<figcaption>${legendOf(colors)}<br>Every cell of the sweep; the band holds 99 % of measurements if the model is right. Cells outside have a red ring.</figcaption></figure>`;
}

/** How the measured variance moves the predictions of large blocks. */
function adjustmentPlot({ cells, needles }: DemoResult): Html {
  const largeBlocks = largeBlocksOf(cells);
  const colors = series(largeBlocks, ({ blockSize }) => blockSize);
  const drawing = plot(
    "Measured hit rate against predictions with and without the measured variance",
    unitAxis("predicted P(hit)"),
    unitAxis("measured hit rate"),
    (frame) => [
      ...agreement(needles, frame),
      ...largeBlocks.flatMap((cell) => {
        const color = colorOf(colors, cell.blockSize);
        const from = { x: cell.predicted.probability, y: rate(cell) };
        const to = { x: cell.adjusted.probability, y: rate(cell) };
        return [line([from, to], frame, color), dot(to, frame, color, describe(cell))];
      }),
    ],
  );
  return html`<figure>${drawing}<figcaption>${legendOf(colors)}<br>Lines begin at the model's prediction; dots are at the one with the measured variance.</figcaption></figure>`;
}

/** Hit rates against the block size, a line for each needle length. */
function blockSizePlot({ cells }: DemoResult): Html {
  const drawing = plot("Hit rate against block size", blockSizeAxis(cells), unitAxis("hit rate"), (frame) =>
    series(cells, ({ needleWords }) => needleWords).flatMap(({ value, color }) => {
      const own = cells.filter(({ needleWords }) => needleWords === value);
      const predicted = own.map((cell) => ({ x: cell.blockSize, y: cell.predicted.probability }));
      const last = predicted[predicted.length - 1];
      return [
        line(predicted, frame, color),
        ...own.map(({ blockSize, needles, predicted: { low, high } }) =>
          whisker(blockSize, low / needles, high / needles, frame, color),
        ),
        ...own.map((cell) =>
          dot({ x: cell.blockSize, y: rate(cell) }, frame, color, describe(cell), !cell.inside),
        ),
        label(last, frame, color, `m = ${value}`),
      ];
    }),
  );
  return html`<figure>${drawing}<figcaption>Lines: predicted, with 99 % intervals. Dots: measured. m is the number of a needle's words.</figcaption></figure>`;
}

/** How much more the scores of noise blocks vary than those of independent keys, against the block size. */
function variancePlot({ cells }: DemoResult): Html {
  const sizes = [...new Set(cells.map(({ blockSize }) => blockSize))];
  const points = sizes.map((x) => {
    const ratios = cells.filter(({ blockSize }) => blockSize === x).map(({ varianceRatio }) => varianceRatio);
    return { x, y: ratios.reduce((sum, ratio) => sum + ratio, 0) / ratios.length };
  });
  const high = Math.ceil(Math.max(1.2, ...points.map(({ y }) => y)) * 5) / 5;
  const ticks = Array.from({ length: Math.round((high - 0.8) * 5) + 1 }, (_, i) => 0.8 + i / 5);
  const axis = {
    title: "variance, times the model's",
    low: 0.8,
    high,
    ticks,
    format: (y: number) => y.toFixed(1),
  };
  const drawing = plot("Variance of noise scores against block size", blockSizeAxis(cells), axis, (frame) => [
    line(
      [
        { x: sizes[0], y: 1 },
        { x: sizes[sizes.length - 1], y: 1 },
      ],
      frame,
      "var(--soft)",
      true,
    ),
    line(points, frame, COLORS[0]),
    ...points.map((point) => dot(point, frame, COLORS[0], `B = ${point.x}: ${point.y.toFixed(2)}`)),
  ]);
  return html`<figure>${drawing}<figcaption>Measured variance of noise blocks' scores, times dB. Independent keys give 1.</figcaption></figure>`;
}

function timingPlot({ timing: { rows } }: DemoResult): Html {
  const high = Math.max(...rows.map(({ dense, moba }) => Math.max(dense, moba)));
  const bar = (ms: number, y: number, color: string, text: string) =>
    html`<rect x="120" y="${y}" width="${Math.max(1, Math.round((ms / high) * 330))}" height="26" rx="3" fill="${color}"/><text x="110" y="${y + 18}" text-anchor="end">${text}</text><text class="label" x="${128 + Math.round((ms / high) * 330)}" y="${y + 18}">${duration(ms)}</text>`;
  const bars = rows.map(({ tokens, dense, moba }, i) => [
    bar(dense, i * 90 + 10, COLORS[1], `${count(tokens)} dense`),
    bar(moba, i * 90 + 42, COLORS[0], "MoBA"),
  ]);
  return html`<figure><svg viewBox="0 0 560 ${rows.length * 90}" role="img" aria-label="Time of MoBA and dense attention">${bars}</svg></figure>`;
}

const cellTable = (cells: readonly Cell[]): Html => {
  const groups = html`<tr><th colspan="4">cell<th colspan="5">needle's block among the k best<th colspan="2">with the text's variance<th colspan="3">needle has the highest weight</tr>`;
  const head = html`<tr><th>B<th>m<th>n<th>SNR<th>predicted<th>99 % hits<th>hits<th>measured<th>inside<th>× dB<th>predicted<th>routed<th>dense<th>keys read</tr>`;
  const rows = cells.map(({ predicted, adjusted, retrieval, ...cell }) => {
    const weights = html`<td>${percent(retrieval.routed / cell.needles)}<td>${percent(retrieval.dense / cell.needles)}<td>${percent(retrieval.keysRead)}`;
    return html`<tr><td>${cell.blockSize}<td>${cell.needleWords}<td>${count(cell.blocks)}<td>${cell.snr.toFixed(2)}<td>${percent(predicted.probability)}<td>${predicted.low} – ${predicted.high}<td>${cell.hits}<td>${percent(cell.hits / cell.needles)}<td class="${cell.inside ? "good" : "bad"}">${cell.inside ? "yes" : "no"}<td>${cell.varianceRatio.toFixed(2)}<td>${percent(adjusted.probability)}${weights}</tr>`;
  });
  return html`<div class="scroll"><table>${groups}${head}${rows}</table></div>`;
};

const timingTable = ({ timing: { rows } }: DemoResult): Html =>
  html`<table><tr><th>tokens<th>dense<th>MoBA<th>dense / MoBA<th>runs (dense, MoBA)</tr>${rows.map(
    ({ tokens, dense, moba, runs }) =>
      html`<tr><td>${count(tokens)}<td>${duration(dense)}<td>${duration(moba)}<td>${(dense / moba).toFixed(1)}<td>${runs.dense}, ${runs.moba}</tr>`,
  )}</table>`;

const tile = (figure: string, caption: string): Html => html`<div><b>${figure}</b>${caption}</div>`;

function tiles({ cells, inside, needles, timing }: DemoResult): Html {
  const reads = cells.map(({ retrieval }) => retrieval.keysRead);
  const longest = timing.rows[timing.rows.length - 1];
  return html`<div class="tiles">
${tile(`${inside} of ${cells.length}`, "cells inside the prediction's 99 % interval")}
${tile(count(cells.length * needles), "needles searched in the sweep")}
${tile(`${(100 * Math.min(...reads)).toFixed(1)} – ${percent(Math.max(...reads))}`, "of the keys read by routed attention")}
${tile(`${(longest.dense / longest.moba).toFixed(1)} ×`, `faster than dense attention at ${count(longest.tokens)} tokens`)}
</div>`;
}

/** The demo's result as one HTML page that needs nothing else. */
export function renderReport(result: DemoResult): string {
  const { text, backend, device, seed, headDim, topK, needles, cells, explanations, timing } = result;
  const largeBlocks = largeBlocksOf(cells);
  const insideLarge = largeBlocks.filter(({ inside }) => inside).length;
  const adjustedLarge = largeBlocks.filter(
    ({ adjusted, hits }) => adjusted.low <= hits && hits <= adjusted.high,
  ).length;
  const outside =
    explanations.length === 0
      ? html`<p>No cell lies outside.</p>`
      : html`<ul>${explanations.map((sentence) => html`<li>${sentence}</li>`)}</ul>`;
  const page = html`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Block routing on ${text.name}</title><style>${STYLE}</style></head><body><main>
<h1>Block routing on ${text.name}: theory against measurement</h1>
<p class="soft">moba demo · backend ${backend} (${device}) · seed ${seed} · d = ${headDim} · k = ${topK} · ${needles} needles a cell</p>
${tiles(result)}
<p>Mixture of Block Attention lets a query attend to k blocks of B keys instead of all keys; it chooses those whose mean key has the largest product with it. Here the keys are the words of a text, each a fixed random direction of dimension d. Needles of m made-up words are hidden in it, each whole inside one block (one that straddled two would split its signal), and each is searched for with the normalized sum of its words. The statistical model (arXiv 2511.11571) predicts how often its block is chosen: SNR = √m · √(d / 2B), and from it P(hit) among n blocks.</p>
<h2>Predicted and measured</h2>
<div class="plots">${agreementPlot(result)}${blockSizePlot(result)}</div>
${cellTable(cells)}
<p class="soft">n blocks. × dB: the variance of noise blocks' scores, measured, over the model's 1 / (dB). The highest weight: one of the needle's words gets more attention than any other key, when the k chosen blocks are attended (routed) or everything (dense). Of a needle whose block is chosen, routed attention more often finds a word: it leaves fewer keys that could outshine it.</p>
<h2>Cells outside the interval</h2>
${outside}
<h2>Larger blocks: where the model's assumption ends</h2>
<p>The model takes keys to be independent. The words of a text need not be: where a topic's words cluster, the scores of large blocks vary more than 1 / (dB), and the prediction is too high. Of these ${largeBlocks.length} cells ${insideLarge} lie inside the model's interval, and ${adjustedLarge} inside that of the measured variance.</p>
<div class="plots">${variancePlot(result)}${adjustmentPlot(result)}</div>
<h2>Time of self-attention</h2>
<p>Causal self-attention of the text's first words, one head of ${timing.headDim}, q = k = v, B = ${timing.blockSize}, k = ${timing.topK}, on ${backend}; medians.</p>
<div class="plots">${timingPlot(result)}${timingTable(result)}</div>
<p class="soft">Made by <code>moba demo --seed ${seed}</code> in ${result.seconds.toFixed(0)} s.</p>
</main></body></html>
`;
  return page.markup;
}

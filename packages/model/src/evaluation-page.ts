import type { HeadInspection } from "./inspect.js";
import type { LossReport } from "./loss.js";
import type { NeedleCell } from "./needles.js";

/** What an evaluation found. */
export interface Evaluation {
  /** Mean loss over a text. */
  readonly loss?: LossReport;
  /** Single-needle results. */
  readonly needles?: readonly NeedleCell[];
  /** Routing, head by head. */
  readonly routing?: readonly HeadInspection[];
}

const STYLE = `:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #8884}
p{max-width:44rem;opacity:.75}.heat td{color:#111;min-width:3rem;text-align:center}`;

/** What the columns of the routing table say. */
const ROUTING_LEGEND =
  "Attention found: the share of dense attention's probability that lies in the blocks that the head chose, beside what as " +
  "many random blocks hold. SNR and recall: of the block with the key of the highest attention, by the statistical model " +
  "(arXiv 2511.11571, section 3) and as measured on block scores.";

/** An HTML table of plain cells. */
const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  `<table><tr>${head.map((text) => `<th>${text}</th>`).join("")}</tr>
${rows.map((row) => `<tr>${row.map((text) => `<td>${text}</td>`).join("")}</tr>`).join("\n")}</table>`;

/** A heat map of one task: a row a depth, a column a length, red for none right and green for all. */
function heatMap(cells: readonly NeedleCell[]): string {
  const lengths = [...new Set(cells.map(({ length }) => length))].sort((a, b) => a - b);
  const depths = [...new Set(cells.map(({ depth }) => depth))].sort((a, b) => a - b);
  const rows = depths.map((depth) => {
    const row = lengths.map((length) => {
      const cell = cells.find((one) => one.length === length && one.depth === depth);
      if (!cell) return "<td></td>";
      const share = cell.correct / cell.samples;
      return `<td style="background:hsl(${Math.round(120 * share)} 60% 70%)">${Math.round(100 * share)} %</td>`;
    });
    return `<tr><th>${Math.round(100 * depth)} %</th>${row.join("")}</tr>`;
  });
  const head = lengths.map((length) => `<th>${length}</th>`).join("");
  return `<table class="heat"><tr><th>depth \\ tokens</th>${head}</tr>\n${rows.join("\n")}</table>`;
}

function routingTable(routing: readonly HeadInspection[]): string {
  const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
  const rows = routing.map(({ layer, head, attentionRecall, randomRecall, estimate }) => [
    String(layer),
    String(head),
    percent(attentionRecall),
    percent(randomRecall),
    estimate ? String(estimate.queries) : "too few",
    ...(estimate
      ? [
          estimate.modelSnr.value.toFixed(2),
          estimate.empiricalSnr.value.toFixed(2),
          percent(estimate.predictedRecall.value),
          percent(estimate.measuredRecall.value),
        ]
      : ["", "", "", ""]),
  ]);
  const head = [
    "layer",
    "head",
    "attention found",
    "at random",
    "queries",
    "SNR (model)",
    "SNR (measured)",
    "recall (predicted)",
    "recall (measured)",
  ];
  return table(head, rows);
}

/** A self-contained HTML page of an evaluation: no script, no request. */
export function evaluationPage({ loss, needles = [], routing = [] }: Evaluation): string {
  const tasks = [...new Set(needles.map(({ task }) => task))];
  const parts = [
    loss
      ? `<h2>Perplexity</h2><p>${loss.perplexity.toFixed(3)} (${loss.loss.toFixed(4)} nats a token, ${loss.tokens} tokens)</p>`
      : "",
    ...tasks.map(
      (task) =>
        `<h2>${task}</h2><p>Answers right, by length of the prompt and depth of the needle.</p>${heatMap(needles.filter((cell) => cell.task === task))}`,
    ),
    routing.length > 0 ? `<h2>Routing</h2><p>${ROUTING_LEGEND}</p>${routingTable(routing)}` : "",
  ];
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Evaluation</title>
<style>${STYLE}</style>
<h1>Evaluation</h1>
${parts.filter(Boolean).join("\n")}
</html>
`;
}

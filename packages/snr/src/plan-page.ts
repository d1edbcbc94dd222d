import { type ChartSeries, chart, formatNumber } from "./chart.js";
import { htmlPage, paragraph, table } from "./page.js";
import type { Plan, PlanEntry } from "./plan.js";

const HEAD = ["B", "k", "W", "SNR", "P(hit)", "keys read", "time", "against dense"];

/** A time with its unit. */
function formatSeconds(seconds: number): string {
  const [factor, unit] = seconds < 1e-3 ? [1e6, "µs"] : seconds < 1 ? [1e3, "ms"] : [1, "s"];
  return `${formatNumber(seconds * factor)} ${unit}`;
}

/** One entry of a plan as text, in the order of HEAD. */
function cells({ blockSize, topK, width, snr, recall, seconds }: PlanEntry, plan: Plan): string[] {
  const share = Math.min(1, (topK * blockSize) / plan.options.tokens);
  return [
    String(blockSize),
    String(topK),
    String(width),
    snr.toFixed(2),
    recall.toFixed(4),
    `${formatNumber(100 * share)} %`,
    formatSeconds(seconds),
    `${formatNumber(plan.denseSeconds / seconds)} ×`,
  ];
}

/** The ranked entries of a plan as aligned plain text, the cheapest first. */
export function planTable(plan: Plan): string {
  const rows = [HEAD, ...plan.entries.map((entry) => cells(entry, plan))];
  const widths = HEAD.map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows.map((row) => row.map((text, i) => text.padStart(widths[i])).join("  ")).join("\n");
}

/**
 * Recall against predicted time as k grows, one line a block size, for one convolution width; the entry of the plan is
 * the dot on its line. A self-contained SVG.
 */
export function planChart(plan: Plan, width: number): string {
  const target = plan.options.targetRecall;
  // Beyond twice the time of dense attention there is nothing to look for.
  const curves = plan.curves
    .filter((curve) => curve[0].width === width)
    .map((curve) => curve.filter(({ seconds }, i) => i === 0 || seconds <= 2 * plan.denseSeconds));
  const times = curves.flat().map(({ seconds }) => seconds * 1e3);
  const series: ChartSeries[] = curves.flatMap((curve, i) => {
    const { blockSize } = curve[0];
    const chosen = plan.entries.filter((entry) => entry.width === width && entry.blockSize === blockSize);
    const point = ({ seconds, recall }: PlanEntry) => ({ x: seconds * 1e3, y: recall });
    const style = { label: `B = ${blockSize}`, color: i % 6 };
    return [
      { ...style, style: "line", points: curve.map(point) },
      { ...style, style: "dots", points: chosen.map(point) },
    ];
  });
  const line = [Math.min(...times), Math.max(...times)].map((x) => ({ x, y: target }));
  return chart({
    title: `Recall against cost${width > 0 ? `, key convolution of width ${width}` : ""}`,
    x: { label: "predicted forward time, ms", scale: "log10" },
    y: { label: "P(hit) at the end of the context", scale: "linear", range: [0, 1] },
    series: [...series, { label: `target ${target}`, style: "reference", color: 0, points: line }],
  });
}

/** The plan as a self-contained HTML page: the ranked table and a chart for each width. */
export function planPage(plan: Plan): string {
  const { tokens, headDim, targetRecall } = plan.options;
  const [best] = plan.entries;
  const widths = [...new Set(plan.entries.map(({ width }) => width))].sort((a, b) => a - b);
  const convolution = best.width > 0 ? ` and a key convolution of width ${best.width}` : "";
  return htmlPage(
    `MoBA plan for ${tokens} tokens, d = ${headDim}, recall ${targetRecall}`,
    [
      paragraph(
        `Cheapest: blocks of ${best.blockSize} keys, top-k ${best.topK}${convolution}, with a predicted recall of ${best.recall.toFixed(4)} in ${formatSeconds(best.seconds)}; dense attention would take ${formatSeconds(plan.denseSeconds)}.`,
      ),
      table(
        HEAD,
        plan.entries.map((entry) => cells(entry, plan)),
      ),
      ...widths.map((width) => `<figure>${planChart(plan, width)}</figure>`),
      paragraph(
        "Each line shows one block size as k grows to the whole context; the dot is the smallest k that reaches the target. Recall is the exact hit probability of the signal-to-noise model for the last query of the context, own block included in k. Times are the cost model's.",
      ),
    ].join("\n"),
  );
}

/** A point of a chart. */
export interface ChartPoint {
  readonly x: number;
  readonly y: number;
  /** Half the length of its error bar, in units of y. */
  readonly error?: number;
}

/** Points that belong together. */
export interface ChartSeries {
  /** Its name in the legend; series of the same name share a line there. */
  readonly label: string;
  /** How it is drawn; a reference is a dashed line in neutral grey. */
  readonly style: "line" | "reference" | "dots";
  /** Which of the palette's 6 colours, from 0. A reference has none. */
  readonly color: number;
  /** Its points; those that are not finite, or not positive on a logarithmic axis, are left out. */
  readonly points: readonly ChartPoint[];
}

/** An axis. */
export interface ChartAxis {
  /** What it shows, with units. */
  readonly label: string;
  /** Linear, or logarithmic with ticks at powers of 2 or 10. */
  readonly scale: "linear" | "log2" | "log10";
  /** The range shown. Default: the range of the points. */
  readonly range?: readonly [number, number];
}

/** A line or scatter chart. */
export interface ChartOptions {
  /** What is to be seen. */
  readonly title: string;
  readonly x: ChartAxis;
  readonly y: ChartAxis;
  readonly series: readonly ChartSeries[];
}

const WIDTH = 760;
const HEIGHT = 400;
const PLOT = { left: 64, right: 540, top: 36, bottom: 348 };

/** Colours told apart by colour-blind readers (after Okabe & Ito), for light and dark pages. */
const STYLE = `
.chart{--ink:#24292f;--soft:#6e7781;--grid:#e3e7eb;--paper:#ffffff;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b0589a;--c4:#b88a00;--c5:#3a3f9e;font:13px system-ui,sans-serif;background:var(--paper);max-width:100%;height:auto}
@media(prefers-color-scheme:dark){.chart{--ink:#e6edf3;--soft:#9198a1;--grid:#30363d;--paper:#0d1117;--c0:#58a6e8;--c1:#ff8c42;--c2:#3fc79a;--c3:#e58fcb;--c4:#e6b93d;--c5:#a3a8ff}}
.chart text{fill:var(--ink)}.chart .tick{fill:var(--soft);font-size:12px}.chart .title{font-weight:600;font-size:14px}
.chart .grid{stroke:var(--grid)}.chart .frame{stroke:var(--soft);fill:none}
.chart path{fill:none;stroke-width:2}.chart .reference{stroke:var(--soft);stroke-dasharray:6 4;stroke-width:1.5}.chart circle{stroke:var(--paper)}
${[0, 1, 2, 3, 4, 5].map((i) => `.chart .k${i}{stroke:var(--c${i})}.chart .d${i}{fill:var(--c${i})}`).join("")}`;

/** Text made safe for HTML and SVG. */
export function escapeText(text: string): string {
  return text.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
}

/** A number with about `digits` significant digits, without an exponent where it can be avoided. */
export function formatNumber(value: number, digits = 3): string {
  const size = Math.abs(value);
  if (value === 0 || (size >= 1e-4 && size < 1e6)) return String(Number(value.toPrecision(digits)));
  return value.toExponential(digits - 1);
}

/** The ticks of an axis within a range. */
function ticks(scale: ChartAxis["scale"], low: number, high: number): number[] {
  if (scale === "linear") {
    const rough = (high - low) / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) ?? rough;
    const count = Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9) + 1;
    return Array.from({ length: count }, (_, i) => (Math.ceil(low / step - 1e-9) + i) * step);
  }
  const base = scale === "log2" ? 2 : 10;
  const log = (value: number) => Math.log(value) / Math.log(base);
  const first = Math.ceil(log(low) - 1e-9);
  const last = Math.floor(log(high) + 1e-9);
  const step = Math.max(1, Math.ceil((last - first) / 7));
  return Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, i) => base ** (first + i * step));
}

/** One axis laid out: where values go, and its ticks. */
interface Layout {
  readonly place: (value: number) => number;
  readonly ticks: readonly number[];
}

function layOut(axis: ChartAxis, values: readonly number[], from: number, to: number): Layout {
  const shown = values.filter((value) => Number.isFinite(value) && (axis.scale === "linear" || value > 0));
  const [low, high] = axis.range ?? [Math.min(...shown), Math.max(...shown)];
  const transform = axis.scale === "linear" ? (value: number) => value : Math.log;
  const margin = axis.range ? 0 : 0.04 * (transform(high) - transform(low) || 1);
  const start = transform(low) - margin;
  const scale = (to - from) / (transform(high) + margin - start);
  return {
    place: (value) => from + (transform(value) - start) * scale,
    ticks: ticks(axis.scale, low, high),
  };
}

/** A self-contained SVG chart that follows the reader's light or dark preference. */
export function chart({ title, x, y, series }: ChartOptions): string {
  const points = series.flatMap((one) => one.points);
  const across = layOut(
    x,
    points.map((point) => point.x),
    PLOT.left,
    PLOT.right,
  );
  const heights = points.flatMap(({ y, error = 0 }) => [y - error, y + error]);
  const up = layOut(y, heights, PLOT.bottom, PLOT.top);
  const parts = [
    `<text class="title" x="${PLOT.left}" y="20">${escapeText(title)}</text>`,
    ...across.ticks.map((tick) => {
      const at = across.place(tick).toFixed(1);
      return `<line class="grid" x1="${at}" x2="${at}" y1="${PLOT.top}" y2="${PLOT.bottom}"/><text class="tick" x="${at}" y="${PLOT.bottom + 17}" text-anchor="middle">${formatNumber(tick)}</text>`;
    }),
    ...up.ticks.map((tick) => {
      const at = up.place(tick).toFixed(1);
      return `<line class="grid" x1="${PLOT.left}" x2="${PLOT.right}" y1="${at}" y2="${at}"/><text class="tick" x="${PLOT.left - 8}" y="${at}" dy="4" text-anchor="end">${formatNumber(tick)}</text>`;
    }),
    `<rect class="frame" x="${PLOT.left}" y="${PLOT.top}" width="${PLOT.right - PLOT.left}" height="${PLOT.bottom - PLOT.top}"/>`,
    `<text x="${(PLOT.left + PLOT.right) / 2}" y="${HEIGHT - 12}" text-anchor="middle">${escapeText(x.label)}</text>`,
    `<text transform="translate(18 ${(PLOT.top + PLOT.bottom) / 2}) rotate(-90)" text-anchor="middle">${escapeText(y.label)}</text>`,
    ...series.map((one) => drawSeries(one, across, up)),
    legend(series),
  ];
  return `<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" role="img" aria-label="${escapeText(title)}"><style>${STYLE}</style>${parts.join("")}</svg>`;
}

function strokeClass(style: ChartSeries["style"], color: number): string {
  return style === "reference" ? "reference" : `k${color}`;
}

function drawSeries({ label, style, color, points }: ChartSeries, across: Layout, up: Layout): string {
  const placed = points
    .map((point) => ({ ...point, px: across.place(point.x), py: up.place(point.y) }))
    .filter(({ px, py }) => Number.isFinite(px) && Number.isFinite(py));
  if (style !== "dots") {
    const path = placed.map(({ px, py }) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");
    return `<path class="${strokeClass(style, color)}" d="M${path}"/>`;
  }
  return placed
    .map(({ x, y, error, px, py }) => {
      const note = `${label}: ${formatNumber(x)}, ${formatNumber(y, 4)}${error ? ` ± ${formatNumber(error, 2)}` : ""}`;
      const [low, high] = error ? [up.place(y - error), up.place(y + error)] : [py, py];
      const bar =
        high === low || !Number.isFinite(low)
          ? ""
          : `<line class="k${color}" x1="${px.toFixed(1)}" x2="${px.toFixed(1)}" y1="${low.toFixed(1)}" y2="${high.toFixed(1)}"/>`;
      return `${bar}<circle class="d${color}" cx="${px.toFixed(1)}" cy="${py.toFixed(1)}" r="4"><title>${escapeText(note)}</title></circle>`;
    })
    .join("");
}

/** One line for each name, with a sample of every style under that name. */
function legend(series: readonly ChartSeries[]): string {
  const left = PLOT.right + 18;
  return [...new Set(series.map(({ label }) => label))]
    .map((label, i) => {
      const y = PLOT.top + 10 + 20 * i;
      const samples = series
        .filter((one) => one.label === label)
        .map(({ style, color }) =>
          style === "dots"
            ? `<circle class="d${color}" cx="${left + 12}" cy="${y}" r="4"/>`
            : `<path class="${strokeClass(style, color)}" d="M${left} ${y}h24"/>`,
        );
      return `${samples.join("")}<text class="tick" x="${left + 32}" y="${y + 4}">${escapeText(label)}</text>`;
    })
    .join("");
}

import { type Html, html } from "./html.js";

/** One axis: its range in data units, where it has ticks, and its title. */
export interface Axis {
  readonly title: string;
  readonly low: number;
  readonly high: number;
  readonly ticks: readonly number[];
  readonly format: (value: number) => string;
  /** Equal ratios at equal distances. */
  readonly logarithmic?: boolean;
}

/** A data point. */
export interface Point {
  readonly x: number;
  readonly y: number;
}

/** Places data points in a drawing. */
export interface Frame {
  readonly x: (value: number) => number;
  readonly y: (value: number) => number;
}

const WIDTH = 560;
const HEIGHT = 400;
const MARGIN = { left: 56, right: 64, top: 16, bottom: 48 };

/** Colours that can be told apart on light and dark ground, by series. */
export const COLORS = ["#4c7de0", "#e0912b", "#d9574a", "#2fa39a", "#8f6ad6", "#7f9a2e"];

/** Coordinates need no more than this. */
const round = (value: number): number => Math.round(value * 10) / 10;

function scale({ low, high, logarithmic }: Axis, from: number, to: number): (value: number) => number {
  const unit = (value: number) => (logarithmic ? Math.log(value) : value);
  const slope = (to - from) / (unit(high) - unit(low));
  return (value) => round(from + (unit(value) - unit(low)) * slope);
}

/** A plot with axes and grid lines; `draw` puts the data in. */
export function plot(label: string, x: Axis, y: Axis, draw: (frame: Frame) => readonly Html[]): Html {
  const right = WIDTH - MARGIN.right;
  const bottom = HEIGHT - MARGIN.bottom;
  const frame = { x: scale(x, MARGIN.left, right), y: scale(y, bottom, MARGIN.top) };
  const columns = x.ticks.map(
    (tick) =>
      html`<text x="${frame.x(tick)}" y="${bottom + 18}" text-anchor="middle">${x.format(tick)}</text>`,
  );
  const rows = y.ticks.map(
    (tick) =>
      html`<line class="grid" x1="${MARGIN.left}" x2="${right}" y1="${frame.y(tick)}" y2="${frame.y(tick)}"/><text x="${MARGIN.left - 8}" y="${frame.y(tick) + 4}" text-anchor="end">${y.format(tick)}</text>`,
  );
  const middle = (MARGIN.left + right) / 2;
  return html`<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${label}">
${rows}${columns}
<text class="title" x="${middle}" y="${HEIGHT - 8}" text-anchor="middle">${x.title}</text>
<text class="title" transform="translate(14 ${(MARGIN.top + bottom) / 2}) rotate(-90)" text-anchor="middle">${y.title}</text>
${draw(frame)}
</svg>`;
}

const path = (points: readonly Point[], { x, y }: Frame): string =>
  points.map((point, i) => `${i === 0 ? "M" : "L"}${x(point.x)} ${y(point.y)}`).join("");

/** A line through points. */
export const line = (points: readonly Point[], frame: Frame, color: string, dashed = false): Html =>
  html`<path class="line${dashed ? " dashed" : ""}" d="${path(points, frame)}" stroke="${color}"/>`;

/** A filled band between two lines over the same `x`. */
export const band = (low: readonly Point[], high: readonly Point[], frame: Frame): Html =>
  html`<path class="band" d="${path([...low, ...high.toReversed()], frame)}Z"/>`;

/** A dot that tells about itself when pointed at. */
export const dot = (point: Point, frame: Frame, color: string, text: string, outlined = false): Html =>
  html`<circle${outlined ? html` class="outlined"` : ""} cx="${frame.x(point.x)}" cy="${frame.y(point.y)}" r="${outlined ? 6 : 4}" fill="${color}"><title>${text}</title></circle>`;

/** A vertical bar from `low` to `high`. */
export const whisker = (x: number, low: number, high: number, frame: Frame, color: string): Html =>
  html`<line class="whisker" x1="${frame.x(x)}" x2="${frame.x(x)}" y1="${frame.y(low)}" y2="${frame.y(high)}" stroke="${color}"/>`;

/** Text right of a point. */
export const label = ({ x, y }: Point, frame: Frame, color: string, text: string): Html =>
  html`<text class="label" x="${frame.x(x) + 9}" y="${frame.y(y) + 4}" fill="${color}">${text}</text>`;

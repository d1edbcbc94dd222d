import { type ChartPoint, chart } from "@moba-js/snr";

/** A step of a run, as a loss curve shows it. */
export interface LossPoint {
  readonly step: number;
  /** Mean training loss, nats a token. */
  readonly loss: number;
  /** Mean loss over held-out text, nats a token, where it was evaluated. */
  readonly heldOutLoss?: number;
}

/** The most points that are drawn of the training loss; each is the mean of the steps around it. */
const POINTS = 200;

/** Means of the losses of neighbouring steps. */
function smoothed(history: readonly LossPoint[]): ChartPoint[] {
  const size = Math.max(1, Math.ceil(history.length / POINTS));
  return Array.from({ length: Math.ceil(history.length / size) }, (_, i) => {
    const group = history.slice(i * size, (i + 1) * size);
    return {
      x: group[group.length - 1].step,
      y: group.reduce((sum, { loss }) => sum + loss, 0) / group.length,
    };
  });
}

/** A self-contained HTML page with the loss curve of a run. */
export function lossPage(history: readonly LossPoint[]): string {
  const heldOut = history.flatMap(({ step, heldOutLoss: y }) => (y === undefined ? [] : [{ x: step, y }]));
  const curve = chart({
    title: "Loss",
    x: { label: "step", scale: "linear" },
    y: { label: "nats a token", scale: "linear" },
    series: [
      { label: "training", style: "line", color: 0, points: smoothed(history) },
      { label: "held out", style: "dots", color: 1, points: heldOut },
    ],
  });
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Loss curve</title>
<body style="max-width: 50rem; margin: 2rem auto">
${curve}
</body>
</html>
`;
}

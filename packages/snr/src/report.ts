import { type ChartSeries, chart } from "./chart.js";
import { type Cell, htmlPage, paragraph, table } from "./page.js";
import {
  type AssumptionRow,
  predictedConvolutionGain,
  type Reproduction,
  type SignalKind,
} from "./reproduce.js";
import type { Estimate } from "./statistics.js";

/** An estimate with its standard error, to `digits` decimals. */
function plusMinus({ value, standardError }: Estimate, digits = 3): string {
  return `${value.toFixed(digits).replace("-", "−")} ± ${standardError.toFixed(digits)}`;
}

function figure(svg: string): string {
  return `<figure>${svg}</figure>`;
}

function section(title: string, ...parts: string[]): string {
  return [`<h2>${title}</h2>`, ...parts].join("\n");
}

/** Groups rows by a key, in order of first appearance. */
function groupBy<Row, Key>(rows: readonly Row[], key: (row: Row) => Key): [Key, Row[]][] {
  const groups = new Map<Key, Row[]>();
  for (const row of rows) groups.set(key(row), [...(groups.get(key(row)) ?? []), row]);
  return [...groups];
}

/** A line for what is predicted and dots for what is measured, under one name. */
function predictedAndMeasured<Row extends { readonly predicted: number; readonly measured: Estimate }>(
  label: string,
  color: number,
  rows: readonly Row[],
  x: (row: Row) => number,
): ChartSeries[] {
  const measured = rows.map((row) => {
    return { x: x(row), y: row.measured.value, error: 2 * row.measured.standardError };
  });
  return [
    { label, color, style: "line", points: rows.map((row) => ({ x: x(row), y: row.predicted })) },
    { label, color, style: "dots", points: measured },
  ];
}

/**
 * The reproduction report as one self-contained HTML page: every figure and table of `reproduce`, with what to
 * make of it. The same data give the same bytes.
 */
export function reproductionReport(data: Reproduction): string {
  return htmlPage(
    "When block routing finds the right block: the theory, simulated",
    [
      paragraph(
        "Every number on this page was simulated from scratch: keys and queries are drawn, signal keys planted, blocks scored by the mean of their keys and the best ones chosen, as Mixture of Block Attention does. It is set beside the closed forms of the signal-to-noise model of Optimizing Mixture of Block Attention (arXiv 2511.11571) and what follows from them. Lines are predictions, dots are measurements with bars of two standard errors.",
      ),
      `<p class="note">Seed ${data.seed}; the same seed gives the same page.</p>`,
      summary(data),
      accuracySection(data),
      lawSection(data),
      fixedComputeSection(data),
      clusteringSection(data),
      convolutionSection(data),
      assumptionsSection(data),
    ].join("\n"),
  );
}

function verdict(good: boolean, text: string): Cell {
  return { text, mood: good ? "good" : "bad" };
}

function summary({ accuracy, slopes, fixedCompute, assumptions }: Reproduction): string {
  const inside = accuracy.filter((row) => row.inside).length;
  const within = (slope: Estimate, law: number) => Math.abs(slope.value - law) <= 0.02;
  const close = (row: { readonly predicted: number; readonly measured: Estimate }) =>
    Math.abs(row.measured.value - row.predicted) <= 3 * row.measured.standardError + 0.002;
  const broken = assumptions.filter((row) => row.verdict === "too high").length;
  return table(
    ["claim", "expected", "found", ""],
    [
      ["closed form inside the 99 % interval", "at least 38 of 40", `${inside} of 40`, mark(inside >= 38)],
      [
        "SNR ∝ √(d/B): log-log slope",
        "0.50 ± 0.02",
        plusMinus(slopes.ratio),
        mark(within(slopes.ratio, 0.5)),
      ],
      ["the same, in d alone", "0.50 ± 0.02", plusMinus(slopes.headDim), mark(within(slopes.headDim, 0.5))],
      [
        "the same, in B alone",
        "−0.50 ± 0.02",
        plusMinus(slopes.blockSize),
        mark(within(slopes.blockSize, -0.5)),
      ],
      [
        "recall at fixed compute as predicted",
        "every cell",
        `${fixedCompute.filter(close).length} of ${fixedCompute.length}`,
        mark(fixedCompute.every(close)),
      ],
      [
        "worlds where it must not be trusted",
        "",
        `${broken} of ${assumptions.length}`,
        "see the last section",
      ],
    ],
  );
}

function mark(good: boolean): Cell {
  return verdict(good, good ? "holds" : "does not hold");
}

function accuracySection({ accuracy }: Reproduction): string {
  const points = accuracy.map(({ predicted, measured }) => {
    return { x: predicted, y: measured.value, error: 2 * measured.standardError };
  });
  return section(
    "The exact hit probability",
    paragraph(
      "40 random settings of the model's own world, over head dimensions of 32 to 128, blocks of 16 to 256 keys, 8 to 512 blocks, 1 to 16 slots and clusters of 1 to 4 keys. The hit probability is the exact one, an integral over the signal's score; the paper gives the pairwise case and a threshold.",
    ),
    figure(
      chart({
        title: "Hit rate, predicted and measured",
        x: { label: "predicted P(hit)", scale: "linear", range: [0, 1] },
        y: { label: "measured", scale: "linear", range: [0, 1] },
        series: [
          {
            label: "equal",
            style: "reference",
            color: 0,
            points: [
              { x: 0, y: 0 },
              { x: 1, y: 1 },
            ],
          },
          { label: "40 settings", style: "dots", color: 1, points },
        ],
      }),
    ),
  );
}

function lawSection({ law, slopes }: Reproduction): string {
  return section(
    "SNR grows with the square root of d/B",
    paragraph(
      `The SNR of block scores, measured as mean over deviation of the signal block's lead, with head dimension and block size varied independently. The log-log slope against d/B is ${plusMinus(slopes.ratio)}; against d alone ${plusMinus(slopes.headDim)}, against B alone ${plusMinus(slopes.blockSize)}.`,
    ),
    figure(
      chart({
        title: "SNR of block scores, separation 4",
        x: { label: "d / B", scale: "log2" },
        y: { label: "SNR", scale: "log2" },
        series: groupBy(law, ({ headDim }) => headDim).flatMap(([headDim, rows], i) =>
          predictedAndMeasured(`d = ${headDim}`, i, rows, ({ blockSize }) => headDim / blockSize),
        ),
      }),
    ),
  );
}

function fixedComputeSection({ fixedCompute }: Reproduction): string {
  const groups = groupBy(fixedCompute, ({ separation }) => separation);
  return section(
    "Smaller blocks at the same compute",
    paragraph(
      "A query reads 1024 of 8192 keys whatever the block size: k·B is held constant, from the paper's 512, 256 and 128 down to 16 (own block included in k, d = 64). Halving the block raises the SNR by √2 and doubles the slots; both help.",
    ),
    figure(
      chart({
        title: "Recall against block size, k·B = 1024",
        x: { label: "block size B (k = 1024 / B)", scale: "log2" },
        y: { label: "recall", scale: "linear", range: [0, 1] },
        series: groups.flatMap(([separation, rows], i) =>
          predictedAndMeasured(`separation ${separation}`, i, rows, ({ blockSize }) => blockSize),
        ),
      }),
    ),
    table(
      [
        "B",
        "k",
        ...groups.flatMap(([separation]) => [`predicted, ${separation}`, `measured, ${separation}`]),
      ],
      groups[0][1].map(({ blockSize, topK }, i) => [
        String(blockSize),
        String(topK),
        ...groups.flatMap(([, rows]) => [rows[i].predicted.toFixed(3), plusMinus(rows[i].measured)]),
      ]),
    ),
  );
}

function clusteringSection({ clustering }: Reproduction): string {
  return section(
    "The clustering multiplier",
    paragraph(
      "Further keys that resemble the signal, in the same block, add to its score: the effective separation is Δμ + (m − 1)(μ_cluster − μ_noise), for cluster keys of a quarter, half and all of the signal's own lift (d = 64, B = 64, Δμ = 1).",
    ),
    figure(
      chart({
        title: "SNR against cluster size",
        x: { label: "m, signal-like keys in the block", scale: "linear", range: [0, 9] },
        y: { label: "SNR", scale: "linear", range: [0, 6] },
        series: groupBy(clustering, ({ strength }) => strength).flatMap(([strength, rows], i) =>
          predictedAndMeasured(`lift ${strength} Δμ`, i, rows, ({ clusterSize }) => clusterSize),
        ),
      }),
    ),
  );
}

const KIND_NAMES: Record<SignalKind, string> = {
  local: "local",
  scattered: "scattered",
  signed: "random signs",
};

function convolutionSection({ linear, convolution, ablation }: Reproduction): string {
  const strong = convolution.filter(({ blockSize }) => blockSize === 128);
  const weak = convolution.filter(({ blockSize }) => blockSize === 32);
  const amplitudes = Array.from({ length: 17 }, (_, i) => 0.125 * 2 ** (i / 4));
  const series = groupBy(strong, ({ kind, width }) => `${KIND_NAMES[kind]}, W = ${width}`).flatMap(
    ([label, rows], i): ChartSeries[] => {
      const predicted = amplitudes.map((x) => ({
        x,
        y: predictedConvolutionGain({ ...rows[0], amplitude: x }),
      }));
      const [, dots] = predictedAndMeasured(label, i, rows, ({ amplitude }) => amplitude);
      return [{ label, color: i, style: "line", points: predicted }, dots];
    },
  );
  const weakTexts = weak.map(
    ({ kind, measured, predicted }) =>
      `${plusMinus(measured)} for ${kind} signal (predicted ${predicted.toFixed(3)})`,
  );
  return section(
    "The key convolution",
    paragraph(
      "The linear part does nothing for the router. The mean of convolved keys over a block is the sum of the weights times the mean of the keys, edges aside, so signal and noise are scaled alike; at the edges signal leaves the block and foreign noise enters. The factor on the SNR is below one for any weights (uniform ones here), and near it for long blocks:",
    ),
    table(
      ["B", "W", "predicted", "measured"],
      linear.map(({ blockSize, width, predicted, measured }) => [
        String(blockSize),
        String(width),
        predicted.toFixed(3),
        plusMinus(measured),
      ]),
    ),
    paragraph(
      "The nonlinearity is all that can help. SiLU(u) = u/2 + (u/2)·tanh(u/2): half of it is linear, the rest is even, positive and blind to signs. For queries whose components have random signs the even part is pure noise, and the convolution hurts. For queries that light components positively, it lifts the signal too; being convex, it lifts neighbouring signal keys, which meet in one window, by more than scattered ones. The chart shows the SNR with the convolution over the SNR without, for 4 signal keys in a block of 128 and weights of 1 on keys of unit variance, against the amplitude of the signal in each component.",
    ),
    figure(
      chart({
        title: "What the key convolution does to the SNR",
        x: { label: "signal amplitude, in deviations of the noise", scale: "log2" },
        y: { label: "SNR with / SNR without", scale: "linear" },
        series: [
          ...series,
          {
            label: "no effect",
            style: "reference",
            color: 0,
            points: [amplitudes[0], amplitudes[16]].map((x) => ({ x, y: 1 })),
          },
        ],
      }),
    ),
    paragraph(
      `So the convolution helps local signal unless it is weak, and hurts weak scattered signal: at an amplitude of 0.25 in blocks of 32 and with W = 5 the factor is ${weakTexts.join(" and ")}. The prediction leaves out that the signal block's own noise grows where SiLU is steep, an error of order (m + W)/B. Recall with 4 of 32 blocks of 64 chosen, at amplitude 1:`,
    ),
    table(
      ["signal", "predicted without", "without", "W = 3", "W = 5"],
      ablation.map(({ kind, predicted, measured }) => [
        KIND_NAMES[kind],
        predicted.toFixed(3),
        ...measured.map((estimate) => plusMinus(estimate)),
      ]),
    ),
    paragraph(
      "Weights here are uniform and untrained. The paper reports that training with the convolution helps; this shows what there is for training to find: features that are positive where they matter, and signal that clusters.",
    ),
  );
}

const VERDICTS: Record<AssumptionRow["verdict"], Cell> = {
  holds: verdict(true, "holds"),
  "too low": "too low here",
  "too high": verdict(false, "do not trust it"),
};

function assumptionsSection({ assumptions }: Reproduction): string {
  const columns = ["predicted", "measured", "from measured SNR"];
  const several = assumptions.filter(
    ({ outcomes: [{ measured }] }) => measured.any.value !== measured.all.value,
  );
  return section(
    "Where the model must not be trusted",
    paragraph(
      "Each world breaks one assumption, all else equal: 64 blocks of 64 keys, d = 64, 4 slots, separations 2.4 and 4.4. The prediction is the closed form's from the separation that was planted. The third column of each puts the SNR that the block scores really have into the closed form: that mends what widens or narrows all scores alike, and it can be measured on real tensors.",
    ),
    table(
      ["world", ...columns, ...columns, "the closed form"],
      assumptions.map(({ name, outcomes, verdict }) => [
        name,
        ...outcomes.flatMap(({ predicted, measured, repaired }) => [
          predicted.toFixed(3),
          plusMinus(measured.recall),
          repaired.toFixed(3),
        ]),
        VERDICTS[verdict],
      ]),
    ),
    paragraph(
      "A mean that all keys share cancels, and unequal norms of keys average out within a block. Words shared by all blocks cancel too, so plain repetition does little. What breaks the model most is anything that makes keys of one block alike: bursts of the same word, correlated neighbours, a topic. The variance of a block's mean then falls more slowly than 1/B, or not at all, and the SNR with it; the measured SNR knows that. Heavy tails shift it a little; blocks of unequal norms make it too low where recall is middling and too high where recall is high, and no single SNR mends that. Signal split over blocks counts in each only by its share, and several needles compete for the slots:",
    ),
    table(
      ["world, separation 2.4", "each", "at least one", "all"],
      several.map(({ name, outcomes: [{ measured }] }) => [
        name,
        plusMinus(measured.recall),
        plusMinus(measured.any),
        plusMinus(measured.all),
      ]),
    ),
  );
}

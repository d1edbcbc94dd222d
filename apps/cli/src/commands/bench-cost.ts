import { resolve } from "node:path";
import { type CostMeasurement, countWork, fitCost, predictSeconds } from "@moba-js/snr";
import { type Backend, bytesPerElement, type FloatDType } from "@moba-js/tensor";
import { writeAtomically } from "../file.js";
import { count, duration, type Output, percent, table } from "../output.js";
import { gaussians, generator } from "../random.js";
import { median, timeRepeated } from "../timing.js";

/** Options of `moba bench cost`. */
export interface BenchCostOptions {
  /** The longest context to time; a half and a quarter of it are timed too. */
  readonly tokens: number;
  readonly heads: number;
  readonly dim: number;
  readonly dtype: FloatDType;
  readonly repeats: number;
  readonly seed: number;
  /** Where the coefficients go. */
  readonly out: string;
}

/** Block sizes and top-k that tell routing, attention and memory apart. */
const CONFIGURATIONS = [
  { blockSize: 16, topK: 8, width: 0 },
  { blockSize: 32, topK: 2, width: 0 },
  { blockSize: 64, topK: 8, width: 0 },
  { blockSize: 128, topK: 2, width: 0 },
  { blockSize: 128, topK: 8, width: 0 },
];

/**
 * `moba bench cost`: measures what a backend's MoBA forward pass takes over lengths, block sizes and top-k, and fits the
 * coefficients of the planner's cost model to it.
 * @throws FormatError for a file that cannot be written.
 */
export async function benchCost(backend: Backend, options: BenchCostOptions, output: Output): Promise<void> {
  const { heads, dim: headDim, dtype, repeats, seed } = options;
  const path = resolve(options.out);
  const random = generator("bench cost", seed);
  const lengths = [options.tokens / 4, options.tokens / 2, options.tokens].map(Math.ceil);
  const rows: { tokens: number; blockSize: number; topK: number; measurement: CostMeasurement }[] = [];
  const measure = async () => {
    using progress = output.progress("bench cost", lengths.length * CONFIGURATIONS.length);
    for (const tokens of lengths) {
      const tensor = () =>
        backend.tensor(gaussians(random, tokens * heads * headDim), [tokens, heads, headDim], dtype);
      using q = tensor();
      using k = tensor();
      using v = tensor();
      for (const configuration of CONFIGURATIONS) {
        const { blockSize, topK } = configuration;
        const samples = await timeRepeated(
          backend,
          () => backend.moba(q, k, v, { blockSize, topK }),
          repeats,
        );
        const work = countWork({
          tokens,
          heads,
          headDim,
          bytesPerElement: bytesPerElement(dtype),
          ...configuration,
        });
        rows.push({ tokens, blockSize, topK, measurement: { work, seconds: median(samples) / 1000 } });
        progress.step(`N = ${tokens}, B = ${blockSize}, k = ${topK}: ${duration(median(samples))}`);
      }
    }
    return fitCost(rows.map(({ measurement }) => measurement));
  };

  let result: object = {};
  await writeAtomically(path, async () => {
    const cost = await measure();
    const measurements = rows.map(({ measurement: { work, seconds }, ...shape }) => {
      const predicted = predictSeconds(work, cost);
      return { ...shape, seconds, predicted, error: predicted / seconds - 1 };
    });
    output.print(`cost of MoBA on ${backend.name} (${backend.device}), ${dtype}, seed ${seed}`);
    output.print();
    const lines = measurements.map(({ tokens, blockSize, topK, seconds, predicted, error }) => [
      count(tokens),
      String(blockSize),
      String(topK),
      duration(seconds * 1000),
      duration(predicted * 1000),
      percent(error),
    ]);
    output.print(table([["N", "B", "k", "measured", "fitted", "error"], ...lines], []));
    output.print();
    output.print(`Coefficients for moba plan --cost: ${path}`);
    const shape = { heads, headDim, dtype };
    result = { backend: backend.name, device: backend.device, seed, ...shape, repeats, cost, measurements };
    return `${JSON.stringify(result, null, 2)}\n`;
  });
  output.result({ ...result, file: path });
}

import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { type CostCoefficients, NOMINAL_COST, plan, planPage, planTable } from "@moba-js/snr";
import { FormatError } from "@moba-js/tensor";
import { writeAtomically } from "../file.js";
import { count, type Output } from "../output.js";

/** Options of `moba plan`. */
export interface PlanCommandOptions {
  readonly tokens: number;
  readonly dim: number;
  readonly heads: number;
  /** `Δμ_eff`. */
  readonly separation: number;
  readonly recall: number;
  /** A file written by `moba bench cost`. */
  readonly cost?: string;
  /** Where the page with the chart goes. */
  readonly out?: string;
}

const COEFFICIENTS = ["secondsPerRoutingFlop", "secondsPerAttentionFlop", "secondsPerByte"] as const;

/** The coefficients in a file that `moba bench cost` wrote. */
async function readCost(path: string): Promise<CostCoefficients> {
  const text = await readFile(path, "utf8").catch((error: Error) => {
    throw new FormatError(path, `cannot be read (${error.message})`);
  });
  let cost: Record<string, unknown> | undefined;
  try {
    cost = JSON.parse(text)?.cost;
  } catch (error) {
    throw new FormatError(path, `is no JSON (${(error as Error).message})`);
  }
  for (const name of COEFFICIENTS) {
    const value = cost?.[name];
    if (typeof value !== "number" || !(value >= 0)) {
      throw new FormatError(path, `has no number "cost.${name}" of at least 0`);
    }
  }
  return cost as unknown as CostCoefficients;
}

/**
 * `moba plan`: block size, top-k and what they cost, for a wanted recall.
 * @throws ArgumentError for an option out of range; FormatError for a file that cannot be used.
 */
export async function planCommand(options: PlanCommandOptions, output: Output): Promise<void> {
  const { tokens, dim: headDim, heads, separation, recall: targetRecall } = options;
  const cost = options.cost === undefined ? NOMINAL_COST : await readCost(options.cost);
  const result = plan({ tokens, headDim, heads, separation, targetRecall, cost });
  output.print(
    `N = ${count(tokens)}, d = ${headDim}, H = ${heads}, separation ${separation}, recall ${targetRecall}; ` +
      `costs ${options.cost === undefined ? "nominal (an H100, from arithmetic)" : `of ${options.cost}`}`,
  );
  output.print();
  output.print(planTable(result));
  if (options.out !== undefined) {
    const path = resolve(options.out);
    await writeAtomically(path, async () => planPage(result));
    output.print();
    output.print(`Chart: ${path}`);
  }
  const { entries, denseSeconds } = result;
  output.result({ tokens, headDim, heads, separation, targetRecall, cost, entries, denseSeconds });
}

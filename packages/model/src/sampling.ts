import type { Random } from "@moba-js/snr";
import { ArgumentError } from "@moba-js/tensor";

/** How the next token is chosen. */
export interface SamplingOptions {
  /** Divides the logits; 0 takes the likeliest token. Default 0. */
  readonly temperature?: number;
  /** Choose among the fewest likeliest tokens whose probabilities sum to this (nucleus sampling, arXiv 1904.09751). Default 1. */
  readonly topP?: number;
}

/** Checks sampling options. @throws ArgumentError naming the one that is out of range */
export function checkSampling({ temperature = 0, topP = 1 }: SamplingOptions): void {
  if (!(temperature >= 0 && temperature < Number.POSITIVE_INFINITY)) {
    throw new ArgumentError("temperature", temperature, "a finite number ≥ 0");
  }
  if (!(topP > 0 && topP <= 1)) throw new ArgumentError("topP", topP, "a number above 0 and at most 1");
}

/** Chooses a token by its logits. Equal logits: the lower token comes first. */
export function sampleToken(logits: Float64Array, options: SamplingOptions, random: Random): number {
  const { temperature = 0, topP = 1 } = options;
  const likeliest = logits.reduce((best, x, token) => (x > logits[best] ? token : best), 0);
  if (temperature === 0) return likeliest;
  const weights = logits.map((x) => Math.exp((x - logits[likeliest]) / temperature));
  const total = weights.reduce((sum, w) => sum + w, 0);
  const order = Array.from(weights.keys());
  if (topP < 1) order.sort((a, b) => weights[b] - weights[a] || a - b);
  let nucleus = 0;
  let kept = 0;
  while (kept < order.length && (kept === 0 || nucleus < topP * total)) nucleus += weights[order[kept++]];
  let rest = random.uniform() * nucleus;
  for (const token of order.slice(0, kept)) {
    rest -= weights[token];
    if (rest < 0) return token;
  }
  return likeliest; // rounding left a rest
}

import { estimateSnr, type SnrEstimate } from "@moba-js/snr";
import { ArgumentError, type Routing } from "@moba-js/tensor";
import { layerAttention } from "./config.js";
import { Tape } from "./tape.js";
import type { RoutingObservation, Transformer } from "./transformer.js";

/** How one head of a MoBA layer routes a text. */
export interface HeadInspection {
  readonly layer: number;
  readonly head: number;
  /**
   * The mean share of dense attention's probability that lies in the chosen blocks: 1 when MoBA loses nothing. Over the queries
   * that have blocks to choose between.
   */
  readonly attentionRecall: number;
  /** The same share when blocks are chosen at random (the own block, and `k−1` of the others): what routing has to beat. */
  readonly randomRecall: number;
  /**
   * The paper's model, estimated with the key of the highest attention as each query's answer (arXiv 2511.11571, section 3).
   * Undefined when fewer than 40 queries have their answer in a block that competes.
   */
  readonly estimate: SnrEstimate | undefined;
}

/** Values of one MoBA layer, on the host. */
interface LayerValues {
  readonly layer: number;
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly indices: Float64Array;
  readonly shapes: { readonly q: readonly number[]; readonly k: readonly number[]; readonly slots: number };
}

/**
 * Runs a model over a text and measures, for each head of each MoBA layer, how well its routing finds what dense attention would
 * attend to. Costs the host `O(T²·d)` a head: give it a few thousand tokens at most.
 * @param tokens one sequence
 * @throws ArgumentError when the model has no MoBA layers
 */
export async function inspectRouting(
  model: Transformer,
  tokens: ArrayLike<number>,
): Promise<HeadInspection[]> {
  const { backend, config } = model;
  const { attention } = config;
  if (attention.kind !== "moba" || config.layers < 2) {
    throw new ArgumentError("model", layerAttention(config, 1).kind, "a model with MoBA layers");
  }
  const reading: Promise<LayerValues>[] = [];
  const observe = ({ layer, q, k, routing }: RoutingObservation) => {
    reading.push(readLayer(layer, q, k, routing));
  };
  backend.scope(() => {
    model.hidden(new Tape(backend, { record: false }), model.packedBatch(tokens, undefined, observe));
  });
  const inspections: HeadInspection[] = [];
  for (const values of await Promise.all(reading)) {
    for (let head = 0; head < config.heads; head++) {
      inspections.push(inspectHead(values, head, attention.blockSize, attention.topK));
    }
  }
  return inspections;
}

/** Reads a layer. Called inside the forward pass: the reads are enqueued before the tensors go. */
async function readLayer(
  layer: number,
  q: RoutingObservation["q"],
  k: RoutingObservation["k"],
  { indices }: Routing,
): Promise<LayerValues> {
  const shapes = { q: q.shape, k: k.shape, slots: indices.shape[2] };
  const [queries, keys, chosen] = await Promise.all([q.values(), k.values(), indices.values()]);
  return { layer, q: queries, k: keys, indices: chosen, shapes };
}

function inspectHead(values: LayerValues, head: number, blockSize: number, topK: number): HeadInspection {
  const { layer, q, k, indices, shapes } = values;
  const [tokens, heads, headDim] = shapes.q as [number, number, number];
  const keyHeads = shapes.k[1];
  const keyHead = Math.floor((head * keyHeads) / heads);
  const answers = new Int32Array(tokens);
  const weights = new Float64Array(tokens);
  let found = 0;
  let expected = 0;
  let routed = 0;
  for (let t = 0; t < tokens; t++) {
    const row = (t * heads + head) * headDim;
    let best = 0;
    for (let j = 0; j <= t; j++) {
      const key = (j * keyHeads + keyHead) * headDim;
      let product = 0;
      for (let c = 0; c < headDim; c++) product += q[row + c] * k[key + c];
      weights[j] = product / Math.sqrt(headDim);
      if (weights[j] > weights[best]) best = j;
    }
    answers[t] = best;
    const own = Math.floor(t / blockSize);
    if (own < topK) continue; // every block is chosen
    const chosen = new Set(
      indices.subarray((t * heads + head) * shapes.slots, (t * heads + head + 1) * shapes.slots),
    );
    const highest = weights[best];
    const mass = { total: 0, chosen: 0, own: 0 };
    for (let j = 0; j <= t; j++) {
      const weight = Math.exp(weights[j] - highest);
      const block = Math.floor(j / blockSize);
      mass.total += weight;
      if (chosen.has(block)) mass.chosen += weight;
      if (block === own) mass.own += weight;
    }
    found += mass.chosen / mass.total;
    expected += (mass.own + ((mass.total - mass.own) * (topK - 1)) / own) / mass.total;
    routed += 1;
  }
  return {
    layer,
    head,
    attentionRecall: routed > 0 ? found / routed : 1,
    randomRecall: routed > 0 ? expected / routed : 1,
    estimate: tryEstimate(values, head, answers, blockSize, topK),
  };
}

/** The estimate, unless there are too few queries for it. */
function tryEstimate(
  { q, k, shapes }: LayerValues,
  head: number,
  answers: Int32Array,
  blockSize: number,
  topK: number,
): SnrEstimate | undefined {
  const [tokens, heads, headDim] = shapes.q as [number, number, number];
  try {
    return estimateSnr({
      queries: { data: q, shape: [tokens, heads, headDim] },
      keys: { data: k, shape: [tokens, shapes.k[1], headDim] },
      head,
      answers,
      blockSize,
      topK,
    });
  } catch (error) {
    if (error instanceof ArgumentError && error.argument === "queries") return undefined;
    throw error;
  }
}

import type { PackedTokens } from "./packing.js";
import { Tape } from "./tape.js";
import type { Transformer } from "./transformer.js";

/** How well a model predicts a text. */
export interface LossReport {
  /** Mean loss, nats a token. */
  readonly loss: number;
  /** `exp(loss)` */
  readonly perplexity: number;
  /** Tokens that were predicted. */
  readonly tokens: number;
}

/** The loss of each token of a packed batch, nats, `[T]`; 0 where there is no target. */
export async function tokenLosses(
  model: Transformer,
  { tokens, targets, cuSeqlens }: PackedTokens,
): Promise<Float64Array> {
  const { backend } = model;
  using losses = backend.scope(() => {
    const tape = new Tape(backend, { record: false });
    const batch = model.packedBatch(tokens, cuSeqlens);
    return model.loss(tape, batch, backend.tensor(targets, [targets.length], "i32")).value;
  });
  return losses.values();
}

/** The mean loss of a model over packed batches. */
export async function meanLoss(
  model: Transformer,
  batches: Iterable<PackedTokens> | AsyncIterable<PackedTokens>,
): Promise<LossReport> {
  let sum = 0;
  let tokens = 0;
  for await (const batch of batches) {
    for (const loss of await tokenLosses(model, batch)) sum += loss;
    for (const target of batch.targets) if (target >= 0) tokens += 1;
  }
  const loss = sum / tokens;
  return { loss, perplexity: Math.exp(loss), tokens };
}

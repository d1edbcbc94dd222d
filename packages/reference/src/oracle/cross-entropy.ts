/** Inputs of a loss in float64. */
export interface CrossEntropyInputs {
  /** `[T, V]` */
  readonly logits: Float64Array;
  /** `y`, `[T]`; what is no column of the logits is ignored. */
  readonly targets: Int32Array;
  /** `V` */
  readonly columns: number;
}

/** Softmax cross-entropy in nats: `loss_t = lse_t − logits_{t, y_t}`, `lse_t = log Σ_v exp(logits_tv)`; 0 where ignored. */
export function crossEntropy({ logits, targets, columns }: CrossEntropyInputs): {
  loss: Float64Array;
  lse: Float64Array;
} {
  const loss = new Float64Array(targets.length);
  const lse = new Float64Array(targets.length);
  targets.forEach((target, t) => {
    const row = t * columns;
    let max = Number.NEGATIVE_INFINITY;
    for (let v = 0; v < columns; v++) max = Math.max(max, logits[row + v]);
    let sum = 0;
    for (let v = 0; v < columns; v++) sum += Math.exp(logits[row + v] - max);
    lse[t] = max + Math.log(sum);
    if (target >= 0 && target < columns) loss[t] = lse[t] - logits[row + target];
  });
  return { loss, lse };
}

/** Gradient of {@link crossEntropy}: `dLogits_tv = dLoss_t (exp(logits_tv − lse_t) − [v = y_t])`, zero where ignored. */
export function crossEntropyBackward(
  inputs: CrossEntropyInputs & { dLoss: Float64Array; lse: Float64Array },
): Float64Array {
  const { logits, targets, columns, dLoss, lse } = inputs;
  const dLogits = new Float64Array(logits.length);
  targets.forEach((target, t) => {
    if (target < 0 || target >= columns) return;
    for (let v = 0; v < columns; v++) {
      const at = t * columns + v;
      dLogits[at] = dLoss[t] * (Math.exp(logits[at] - lse[t]) - (v === target ? 1 : 0));
    }
  });
  return dLogits;
}

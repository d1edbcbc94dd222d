import type { CrossEntropyProblem, CrossEntropyResult, FloatDType, Tensor } from "@moba-js/tensor";
import { rowRanges, rowsOf } from "../src/commands.js";
import type { Context } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import lossSource from "./cross-entropy.wgsl";
import backwardSource from "./cross-entropy-backward.wgsl";
import { overElements } from "./elementwise.js";
import mainSource from "./elementwise.wgsl";
import rowsSource from "./rows.wgsl";

const LOSS = kernel({
  name: "cross-entropy",
  source: rowsSource + lossSource,
  bindings: { logits: read("elements"), targets: read("i32"), loss: write("f32"), lse: write("f32") },
  params: { columns: "u32" },
});

const BACKWARD = kernel({
  name: "cross-entropy-backward",
  source: backwardSource + mainSource,
  bindings: {
    dLoss: read("f32"),
    logits: read("elements"),
    targets: read("i32"),
    lse: read("f32"),
    dLogits: write("quads"),
  },
  params: { firstQuad: "u32", endQuad: "u32", size: "u32", columns: "u32" },
});

/** `loss_t = lse_t − logits_{t, y_t}`. */
export function crossEntropy(
  { commands }: Context,
  { logits, targets }: CrossEntropyProblem,
  { loss, lse }: CrossEntropyResult,
): void {
  const [tokens, columns] = logits.shape;
  for (const { first, count } of rowRanges(tokens, 4 * columns, commands.bindingLimit)) {
    const rows = (tensor: Tensor, elements = 1) => rowsOf(tensor, elements, first, count);
    commands.launch(LOSS, {
      buffers: { logits: rows(logits, columns), targets: rows(targets), loss: rows(loss), lse: rows(lse) },
      params: { columns },
      groups: count,
    });
  }
}

/** The gradient of {@link crossEntropy}. */
export function crossEntropyBackward(
  context: Context,
  problem: CrossEntropyProblem & { dLoss: Tensor<"f32">; lse: Tensor<"f32"> },
  dLogits: Tensor<FloatDType>,
): void {
  const { dLoss, logits, targets, lse } = problem;
  const [tokens, columns] = logits.shape;
  for (const { first, count } of rowRanges(tokens, 4 * columns, context.commands.bindingLimit)) {
    const rows = (tensor: Tensor, elements = 1) => rowsOf(tensor, elements, first, count);
    const matrices = { logits: rows(logits, columns), dLogits: rows(dLogits, columns) };
    const vectors = { dLoss: rows(dLoss), targets: rows(targets), lse: rows(lse) };
    const size = count * columns;
    overElements(context, BACKWARD, size, { ...matrices, ...vectors }, { size, columns });
  }
}

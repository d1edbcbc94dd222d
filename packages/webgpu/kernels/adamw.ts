import type { AdamWProblem } from "@moba-js/tensor";
import { rowRanges, rowsOf } from "../src/commands.js";
import type { Context } from "../src/context.js";
import { kernel, read, write } from "../src/kernel.js";
import adamwSource from "./adamw.wgsl";
import adamwNormSource from "./adamw-norm.wgsl";
import { overElements, RANGE } from "./elementwise.js";
import mainSource from "./elementwise.wgsl";
import finiteSource from "./finite.wgsl";
import { sum } from "./reductions.js";

const NORM = kernel({
  name: "adamw-norm",
  source: finiteSource + adamwNormSource,
  bindings: { squares: read("f32"), gradientNorm: write("f32") },
  params: { parameters: "u32" },
});

const ADAMW = kernel({
  name: "adamw",
  source: finiteSource + adamwSource + mainSource,
  bindings: {
    schedule: read("f32"),
    gradientNorm: read("f32"),
    gradient: read("quads"),
    parameter: write("quads"),
    m: write("quads"),
    v: write("quads"),
  },
  params: {
    ...RANGE,
    weightDecay: "f32",
    beta1: "f32",
    oneMinusBeta1: "f32",
    logBeta1: "f32",
    beta2: "f32",
    oneMinusBeta2: "f32",
    logBeta2: "f32",
    epsilon: "f32",
    clipNorm: "f32",
  },
});

/** `ln β`, finite. */
const logarithm = (beta: number): number => Math.log(Math.max(beta, Number.MIN_VALUE));

/** One step of AdamW over all parameters, in place. */
export function adamw(context: Context, problem: AdamWProblem): void {
  const { commands } = context;
  const { parameters, schedule, gradientNorm, beta1, beta2, epsilon, clipNorm } = problem;
  const squares = commands.workspace(parameters.length);
  for (const [place, { gradient }] of parameters.entries()) sum(context, gradient, squares, true, place);
  const norm = { buffers: { squares, gradientNorm }, params: { parameters: parameters.length } };
  commands.launch(NORM, { ...norm, groups: 1 });
  squares.free();
  for (const { weightDecay, ...tensors } of parameters) {
    const params = {
      ...{ weightDecay, epsilon, beta1, beta2, clipNorm: Math.min(clipNorm, 3e38) },
      oneMinusBeta1: 1 - beta1,
      logBeta1: logarithm(beta1),
      oneMinusBeta2: 1 - beta2,
      logBeta2: logarithm(beta2),
    };
    const quads = Math.ceil(tensors.parameter.size / 4);
    for (const { first, count } of rowRanges(quads, 16, commands.bindingLimit)) {
      const buffers = {
        ...{ schedule, gradientNorm },
        gradient: rowsOf(tensors.gradient, 4, first, count),
        parameter: rowsOf(tensors.parameter, 4, first, count),
        m: rowsOf(tensors.m, 4, first, count),
        v: rowsOf(tensors.v, 4, first, count),
      };
      overElements(context, ADAMW, 4 * count, buffers, params);
    }
  }
}

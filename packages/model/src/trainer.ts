import { ArgumentError, type Backend, checkPositiveInteger, type Tensor } from "@moba-js/tensor";
import type { PackedTokens } from "./packing.js";
import { Tape, type Variable } from "./tape.js";
import type { Transformer } from "./transformer.js";

/** How a model is trained. */
export interface TrainingOptions {
  /** Steps of the whole run: the learning rate has fallen to its end after them. */
  readonly steps: number;
  /** The highest learning rate. */
  readonly learningRate: number;
  /** Steps in which the learning rate rises from 0, linearly. Default 0. */
  readonly warmupSteps?: number;
  /** The learning rate at the end, as a share of the highest. Default 0.1. */
  readonly finalShare?: number;
  /** Decay of matrices, not of norms or convolutions. Default 0.1. */
  readonly weightDecay?: number;
  /** Default 0.9. */
  readonly beta1?: number;
  /** Default 0.95. */
  readonly beta2?: number;
  /** The most that the norm of the gradient may be; longer ones are scaled down. Default 1. */
  readonly clipNorm?: number;
  /** Keep only each layer's input between forward and backward pass. Default false. */
  readonly recompute?: boolean;
}

/** What a step was like. */
export interface StepMetrics {
  /** Number of the step, from 1. */
  readonly step: number;
  /** Mean loss before the step, nats a token. */
  readonly loss: number;
  readonly learningRate: number;
  /** Norm of the gradient before clipping. */
  readonly gradientNorm: number;
  /** Tokens that were predicted. */
  readonly tokens: number;
}

/** AdamW's memory of one parameter. */
export interface Moments {
  readonly m: Tensor;
  readonly v: Tensor;
}

/**
 * The learning rate of a step (from 1): linear warm-up, then a cosine down to `finalShare` (arXiv 1608.03983):
 * `η = η_max (f + (1 − f) (1 + cos πx) / 2)`, `x` the share of the steps after warm-up that are done.
 */
export function learningRateAt(step: number, options: TrainingOptions): number {
  const { steps, learningRate, warmupSteps = 0, finalShare = 0.1 } = options;
  if (step <= warmupSteps) return (learningRate * step) / warmupSteps;
  const x = Math.min(1, (step - warmupSteps) / Math.max(1, steps - warmupSteps));
  return learningRate * (finalShare + ((1 - finalShare) * (1 + Math.cos(Math.PI * x))) / 2);
}

function checkOptions(options: TrainingOptions): void {
  checkPositiveInteger("steps", options.steps);
  const { warmupSteps = 0, learningRate, finalShare = 0.1, clipNorm = 1 } = options;
  if (!Number.isInteger(warmupSteps) || warmupSteps < 0) {
    throw new ArgumentError("warmupSteps", warmupSteps, "a non-negative integer");
  }
  for (const [name, value] of Object.entries({ learningRate, finalShare, clipNorm })) {
    if (!(value >= 0 && value < Number.POSITIVE_INFINITY)) {
      throw new ArgumentError(name, value, "a finite number ≥ 0");
    }
  }
}

/** Trains a model step by step. Owns the moments, not the model. */
export class Trainer {
  readonly #moments: ReadonlyMap<string, Moments>;
  #step: number;

  /**
   * @param state what a run before left: steps done, and moments (owned from now on). Default: a fresh start.
   */
  constructor(
    readonly model: Transformer,
    readonly options: TrainingOptions,
    state?: { step: number; moments: ReadonlyMap<string, Moments> },
  ) {
    checkOptions(options);
    const { backend } = model;
    const fresh = ({ value: { shape } }: Variable) => ({ m: backend.zeros(shape), v: backend.zeros(shape) });
    this.#step = state?.step ?? 0;
    this.#moments =
      state?.moments ?? new Map([...model.parameters].map(([name, parameter]) => [name, fresh(parameter)]));
  }

  /** Steps done. */
  get step(): number {
    return this.#step;
  }

  /** AdamW's memory of each parameter. */
  get moments(): ReadonlyMap<string, Moments> {
    return this.#moments;
  }

  /**
   * One step of AdamW on the mean loss of the tokens of some batches, whose gradients are accumulated one after the other.
   * @throws ArgumentError when the gradient is not finite: the model is as it was before the step
   */
  async train(batches: readonly PackedTokens[]): Promise<StepMetrics> {
    const { model, options } = this;
    const { backend } = model;
    const tokens = batches.reduce((sum, { targets }) => sum + targets.filter((y) => y >= 0).length, 0);
    for (const parameter of model.parameters.values()) parameter.takeGradient()?.dispose(); // of a step that failed
    const losses = batches.map((batch) => this.#accumulate(batch, 1 / Math.max(1, tokens)));
    const gradients = [...model.parameters].map(([name, parameter]) => {
      const gradient = parameter.takeGradient();
      if (!gradient) throw new ArgumentError("batches", batches, "at least one batch");
      return { name, parameter: parameter.value, gradient };
    });
    try {
      const squares = backend.scope(() =>
        total(
          backend,
          gradients.map(({ gradient }) => backend.sumSquares(gradient)),
        ),
      );
      const [loss, squaredNorm] = await Promise.all([
        readScalar(backend.scope(() => total(backend, losses))),
        readScalar(squares),
      ]);
      const gradientNorm = Math.sqrt(squaredNorm);
      if (!Number.isFinite(gradientNorm)) {
        throw new ArgumentError("gradient norm", gradientNorm, "a finite number: training has diverged");
      }
      const step = this.#step + 1;
      const learningRate = learningRateAt(step, options);
      const { clipNorm = 1, weightDecay = 0.1, beta1 = 0.9, beta2 = 0.95 } = options;
      const gradientScale = gradientNorm > clipNorm ? clipNorm / gradientNorm : 1;
      for (const { name, parameter, gradient } of gradients) {
        backend.adamw(parameter, gradient, this.#moments.get(name) as Moments, {
          step,
          learningRate,
          weightDecay: parameter.shape.length === 2 ? weightDecay : 0,
          beta1,
          beta2,
          gradientScale,
        });
      }
      this.#step = step;
      return { step, loss: loss / Math.max(1, tokens), learningRate, gradientNorm, tokens };
    } finally {
      for (const { gradient } of gradients) gradient.dispose();
    }
  }

  /** Adds one batch's gradients, each token's loss weighing `weight`. Returns the summed loss. */
  #accumulate({ tokens, targets, cuSeqlens }: PackedTokens, weight: number): Tensor {
    const { model, options } = this;
    const { backend } = model;
    return backend.scope(() => {
      const tape = new Tape(backend, { recompute: options.recompute === true });
      const batch = model.packedBatch(tokens, cuSeqlens);
      const losses = model.loss(tape, batch, backend.tensor(targets, [targets.length], "i32"));
      const sum = backend.sum(losses.value);
      tape.backward(losses, backend.tensor(new Float32Array(targets.length).fill(weight), [targets.length]));
      // The scope keeps what is in its result: the gradients too.
      return { sum, gradients: [...model.parameters.values()].map(({ gradient }) => gradient) };
    }).sum;
  }

  /** Disposes the moments. */
  dispose(): void {
    for (const { m, v } of this.#moments.values()) {
      m.dispose();
      v.dispose();
    }
  }
}

/** The sum of scalars, in order; takes them over. */
function total(backend: Backend, scalars: readonly Tensor[]): Tensor {
  return scalars.reduce((sum, scalar) => {
    const next = backend.add(sum, scalar);
    sum.dispose();
    scalar.dispose();
    return next;
  });
}

/** Reads a scalar and disposes it. */
async function readScalar(scalar: Tensor): Promise<number> {
  const [value] = await scalar.values();
  scalar.dispose();
  return value;
}

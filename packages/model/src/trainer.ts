import {
  ArgumentError,
  type CapturedWork,
  checkPositiveInteger,
  DeviceError,
  type Tensor,
} from "@moba-js/tensor";
import type { PackedTokens } from "./packing.js";
import { Tape, type Variable } from "./tape.js";
import type { TokenBatch, Transformer } from "./transformer.js";

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

/** A batch on the device. */
interface StepInput {
  readonly batch: TokenBatch;
  readonly targets: Tensor;
  /** What each token's loss weighs in the loss of the step. */
  readonly weights: Tensor;
}

/** A step whose work is captured: for batches of the same shapes. */
interface CapturedStep {
  /** The shapes. */
  readonly key: string;
  readonly inputs: readonly StepInput[];
  readonly work: CapturedWork;
  /** Summed loss, after a replay. */
  readonly loss: Tensor;
}

/**
 * Trains a model step by step. Owns the moments, not the model. A step is enqueued as a whole when `train` is called; where the backend
 * can, a step of the same shapes as the one before is captured, and replayed from then on.
 */
export class Trainer {
  readonly #moments: ReadonlyMap<string, Moments>;
  /** Number and learning rate of the step. */
  readonly #schedule: Tensor;
  /** Of the last step; not finite once training has diverged. */
  #gradientNorm: Tensor;
  #step: number;
  #lastKey = "";
  /** Whether to try to capture steps. */
  #captures: boolean;
  #captured: CapturedStep | undefined;

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
    this.#captures = backend.capture !== undefined && !backend.debug.poisonOutputs;
    this.#schedule = backend.zeros([2]);
    this.#gradientNorm = backend.zeros([]);
  }

  /** Steps done, those included that are enqueued. */
  get step(): number {
    return this.#step;
  }

  /** AdamW's memory of each parameter. */
  get moments(): ReadonlyMap<string, Moments> {
    return this.#moments;
  }

  /**
   * One step of AdamW on the mean loss of the tokens of some batches, whose gradients are accumulated one after the other.
   * The step is enqueued before this returns; so the next one may be asked for before the promise is settled, which keeps the
   * device busy.
   * @throws ArgumentError when the gradient is not finite: the model is as it was before the step, and steps that were enqueued after
   * it fail too
   */
  async train(batches: readonly PackedTokens[]): Promise<StepMetrics> {
    if (batches.length === 0) throw new ArgumentError("batches", batches, "at least one batch");
    const step = this.#step + 1;
    const learningRate = learningRateAt(step, this.options);
    const tokens = batches.reduce((sum, { targets }) => sum + countTargets(targets), 0);
    const norm = this.#gradientNorm;
    this.model.backend.write(this.#schedule, [step, learningRate]);
    const summedLoss = this.#enqueue(batches, 1 / Math.max(1, tokens));
    this.#step = step;
    const [loss, [gradientNorm]] = await Promise.all([summedLoss, norm.values()]);
    if (!Number.isFinite(gradientNorm)) {
      this.#step = Math.min(this.#step, step - 1);
      if (norm === this.#gradientNorm) this.#startAnew();
      throw new ArgumentError("gradient norm", gradientNorm, "a finite number: training has diverged");
    }
    return { step, loss: loss / Math.max(1, tokens), learningRate, gradientNorm, tokens };
  }

  /** Enqueues a step. Resolves to the summed loss. */
  #enqueue(batches: readonly PackedTokens[], weight: number): Promise<number> {
    const key = batches.map(({ cuSeqlens }) => cuSeqlens.join()).join("; ");
    const repeated = key === this.#lastKey;
    this.#lastKey = key;
    if (this.#captured?.key !== key) {
      this.#dropCaptured();
      if (repeated) this.#captured = this.#capture(key, batches);
    }
    const { backend } = this.model;
    if (!this.#captured) {
      return readScalar(backend.scope(() => this.#run(this.#inputs(batches, weight))));
    }
    const { inputs, work, loss } = this.#captured;
    for (const [i, { batch, targets, weights }] of inputs.entries()) {
      backend.write(batch.tokens, batches[i].tokens);
      backend.write(targets, batches[i].targets);
      backend.write(weights, new Float32Array(weights.size).fill(weight));
    }
    work.replay();
    return loss.values().then(([value]) => value);
  }

  /** Captures the work of a step on batches of these shapes, where the backend can. */
  #capture(key: string, batches: readonly PackedTokens[]): CapturedStep | undefined {
    const { backend } = this.model;
    if (!this.#captures || !backend.capture) return undefined;
    const inputs = this.#inputs(batches, 0);
    let loss: Tensor | undefined;
    try {
      const work = backend.capture(() => {
        loss = backend.scope(() => this.#run(inputs));
      });
      return { key, inputs, work, loss: loss as unknown as Tensor };
    } catch (error) {
      if (!(error instanceof DeviceError)) throw error;
      // Too little memory to keep, for example: steps go on without; if that is not it, they fail with the same error.
      this.#captures = false;
      disposeInputs(inputs);
      return undefined;
    }
  }

  #dropCaptured(): void {
    if (!this.#captured) return;
    const { inputs, work, loss } = this.#captured;
    this.#captured = undefined;
    disposeInputs(inputs);
    loss.dispose();
    work.dispose();
  }

  /** After a step that failed: until now it made later ones fail too. */
  #startAnew(): void {
    this.#dropCaptured();
    this.#gradientNorm.dispose();
    this.#gradientNorm = this.model.backend.zeros([]);
  }

  #inputs(batches: readonly PackedTokens[], weight: number): StepInput[] {
    const { model } = this;
    const { backend } = model;
    return batches.map(({ tokens, targets, cuSeqlens }) => ({
      batch: model.packedBatch(tokens, cuSeqlens),
      targets: backend.tensor(targets, [targets.length], "i32"),
      weights: backend.tensor(new Float32Array(targets.length).fill(weight), [targets.length]),
    }));
  }

  /** The operations of a step. Returns the summed loss. */
  #run(inputs: readonly StepInput[]): Tensor {
    const { model, options } = this;
    const { backend } = model;
    for (const parameter of model.parameters.values()) parameter.takeGradient()?.dispose(); // of a step that failed
    const loss = inputs.map((input) => this.#accumulate(input)).reduce((sum, next) => backend.add(sum, next));
    const { clipNorm = 1, weightDecay = 0.1, beta1 = 0.9, beta2 = 0.95 } = options;
    const parameters = [...model.parameters].map(([name, variable]) => ({
      parameter: variable.value,
      gradient: variable.takeGradient() as Tensor,
      weightDecay: variable.value.shape.length === 2 ? weightDecay : 0,
      ...(this.#moments.get(name) as Moments),
    }));
    backend.adamw(parameters, this.#schedule, this.#gradientNorm, { beta1, beta2, clipNorm });
    for (const { gradient } of parameters) gradient.dispose();
    return loss;
  }

  /** Adds one batch's gradients. Returns the summed loss. */
  #accumulate({ batch, targets, weights }: StepInput): Tensor {
    const { model, options } = this;
    const tape = new Tape(model.backend, { recompute: options.recompute === true });
    const losses = model.loss(tape, batch, targets, weights);
    const sum = model.backend.sum(losses.value);
    tape.backward(losses, weights);
    return sum;
  }

  /** Disposes the moments. */
  dispose(): void {
    this.#dropCaptured();
    this.#schedule.dispose();
    this.#gradientNorm.dispose();
    for (const { m, v } of this.#moments.values()) {
      m.dispose();
      v.dispose();
    }
  }
}

/** Tokens that have a target. */
function countTargets(targets: ArrayLike<number>): number {
  let count = 0;
  for (let t = 0; t < targets.length; t++) if (targets[t] >= 0) count += 1;
  return count;
}

function disposeInputs(inputs: readonly StepInput[]): void {
  for (const { batch, targets, weights } of inputs) {
    for (const tensor of [batch.tokens, batch.positions, targets, weights]) tensor.dispose();
  }
}

/** Reads a scalar and disposes it. */
async function readScalar(scalar: Tensor): Promise<number> {
  const reading = scalar.values();
  scalar.dispose();
  const [value] = await reading;
  return value;
}

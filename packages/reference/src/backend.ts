import {
  type AdamWProblem,
  type AttendBackwardProblem,
  type AttendProblem,
  type AttentionBackwardProblem,
  type AttentionGradients,
  type AttentionProblem,
  type AttentionResult,
  Backend,
  type CentroidsProblem,
  type CopyRowsProblem,
  type CrossEntropyProblem,
  type CrossEntropyResult,
  DeviceError,
  type DType,
  FLOAT_DTYPES,
  type FloatDType,
  type KeyConvHistoryProblem,
  type KeyConvProblem,
  type MatmulProblem,
  type Operation,
  type RmsNormProblem,
  type RopeProblem,
  type RouteCentroidsProblem,
  type RouteProblem,
  type Routing,
  type Storage,
  type Tensor,
  type TypedArray,
  type UpdateCentroidsProblem,
} from "@moba-js/tensor";
import { allocateHost, type HostStorage, integersOf, keepValuesOf, valuesOf, write } from "./host-memory.js";
import type { BlockRouting } from "./layout.js";
import { adamw } from "./oracle/adamw.js";
import type { AttentionInputs } from "./oracle/attention.js";
import type { Gradients } from "./oracle/backward.js";
import { centroids } from "./oracle/centroids.js";
import { crossEntropy, crossEntropyBackward } from "./oracle/cross-entropy.js";
import { embedding, embeddingBackward } from "./oracle/embedding.js";
import { type KeyConvInputs, keyConv, keyConvBackward, keyConvHistory } from "./oracle/key-conv.js";
import { add, sum, sumSquares } from "./oracle/reductions.js";
import { type RmsNormInputs, rmsNorm, rmsNormBackward } from "./oracle/rms-norm.js";
import { rope } from "./oracle/rope.js";
import { routeBlocks, routeByCentroids } from "./oracle/route.js";
import { updateCentroids } from "./oracle/running-centroids.js";
import { swiglu, swigluBackward } from "./oracle/swiglu.js";
import type { BackwardInputs } from "./paths/backward-tile.js";
import { matmulTiled } from "./paths/matmul.js";
import { denseRange, rangeAttention, rangeAttentionBackward, windowRange } from "./paths/range-attention.js";
import { attendSlots, attendSlotsBackward } from "./paths/slot-plan.js";

/** Every JavaScript host has it, but not the language's own library. */
declare const performance: { now(): number };

/** A routing's indices on the host. */
function blockRouting({ indices, blockSize, causal }: Routing): BlockRouting {
  return { indices: integersOf(indices), slots: indices.shape[2], blockSize, causal };
}

/** A checked problem's inputs in float64. */
const attentionInputs = (problem: AttentionProblem): AttentionInputs => ({
  ...problem,
  q: valuesOf(problem.q),
  k: valuesOf(problem.k),
  v: valuesOf(problem.v),
});

/** A checked key convolution's inputs in float64. */
const keyConvInputs = (problem: KeyConvProblem): Omit<KeyConvInputs, "history"> => ({
  ...problem,
  k: valuesOf(problem.k),
  weights: valuesOf(problem.weights),
});

/** A checked backward problem's inputs in float64. */
const backwardInputs = (problem: AttentionBackwardProblem): BackwardInputs => ({
  ...attentionInputs(problem),
  dOut: valuesOf(problem.dOut),
  out: valuesOf(problem.out),
  lse: valuesOf(problem.lse),
});

/** A checked normalization's inputs in float64. */
const rmsNormInputs = (problem: RmsNormProblem): RmsNormInputs => ({
  ...problem,
  x: valuesOf(problem.x),
  weight: valuesOf(problem.weight),
});

/** Options of {@link ReferenceBackend}. */
export interface ReferenceOptions {
  /**
   * Hold float32 tensors in float64, unrounded, so that results are those of the equations and `values()` reads them as
   * they are: for finite differences and other proofs. Default false.
   */
  exact?: boolean;
}

/**
 * The CPU backend: the float64 oracle behind the `Backend` interface, for f32, f16 and bf16. Inputs are widened to float64,
 * results rounded once at the end. Each operation is computed at once, on the calling thread.
 */
export class ReferenceBackend extends Backend {
  readonly name = "cpu";
  readonly device = "plain TypeScript, float64 inside, one thread";

  readonly #exact: boolean;

  constructor(options: ReferenceOptions = {}) {
    super();
    this.#exact = options.exact === true;
  }

  supports(_operation: Operation, dtype: DType): boolean {
    return (FLOAT_DTYPES as readonly DType[]).includes(dtype);
  }

  async time(run: () => void): Promise<number> {
    const start = performance.now();
    run();
    return performance.now() - start;
  }

  protected allocate(byteLength: number, dtype: DType): Storage {
    try {
      return allocateHost(byteLength, dtype, this.#exact);
    } catch (cause) {
      throw new DeviceError(this.name, `no memory for ${byteLength} bytes (${(cause as Error).message})`);
    }
  }

  protected upload(storage: Storage, data: TypedArray): void {
    const host = storage as HostStorage;
    host.array.set(data);
    host.widened = undefined;
  }

  protected async download(storage: Storage): Promise<TypedArray> {
    const { array } = storage as HostStorage;
    return array instanceof Float64Array ? Float32Array.from(array) : array.slice();
  }

  protected override async downloadValues(storage: Storage, dtype: DType): Promise<Float64Array> {
    const { array } = storage as HostStorage;
    return array instanceof Float64Array ? array.slice() : super.downloadValues(storage, dtype);
  }

  protected close(): void {}

  protected override runAttention(
    problem: AttentionProblem & { causal: boolean },
    outputs: AttentionResult,
  ): void {
    this.#writeAttention(rangeAttention(attentionInputs(problem), denseRange(problem.causal)), outputs);
  }

  protected override runWindowAttention(
    problem: AttentionProblem & { window: number },
    outputs: AttentionResult,
  ): void {
    this.#writeAttention(rangeAttention(attentionInputs(problem), windowRange(problem.window)), outputs);
  }

  protected override runAttentionBackward(
    problem: AttentionBackwardProblem & { causal: boolean },
    outputs: AttentionGradients,
  ): void {
    const gradients = rangeAttentionBackward(backwardInputs(problem), denseRange(problem.causal));
    this.#writeGradients(gradients, outputs);
  }

  protected override runWindowAttentionBackward(
    problem: AttentionBackwardProblem & { window: number },
    outputs: AttentionGradients,
  ): void {
    const gradients = rangeAttentionBackward(backwardInputs(problem), windowRange(problem.window));
    this.#writeGradients(gradients, outputs);
  }

  protected override runCentroids(
    { k, cuSeqlens, blockSize }: CentroidsProblem,
    output: Tensor<"f32">,
  ): void {
    const [, kvHeads, headDim] = k.shape;
    write(output, centroids({ k: valuesOf(k), kvHeads, headDim, cuSeqlens, blockSize }));
  }

  protected override runRoute(problem: RouteProblem, indices: Tensor<"i32">): void {
    const routing = routeBlocks({ ...problem, q: valuesOf(problem.q), k: valuesOf(problem.k) });
    integersOf(indices).set(routing.indices);
  }

  protected override runAttend(problem: AttendProblem, outputs: AttentionResult): void {
    const routing = blockRouting(problem.routing);
    this.#writeAttention(attendSlots({ ...attentionInputs(problem), routing }), outputs);
  }

  protected override runAttendBackward(problem: AttendBackwardProblem, outputs: AttentionGradients): void {
    const routing = blockRouting(problem.routing);
    this.#writeGradients(attendSlotsBackward({ ...backwardInputs(problem), routing }), outputs);
  }

  protected override runKeyConv(
    problem: KeyConvProblem & { history?: Tensor<FloatDType> },
    out: Tensor<FloatDType>,
  ): void {
    const { history } = problem;
    write(out, keyConv({ ...keyConvInputs(problem), ...(history && { history: valuesOf(history) }) }));
  }

  protected override runKeyConvHistory(problem: KeyConvHistoryProblem, next: Tensor<FloatDType>): void {
    const { k, width, cuSeqlens, history } = problem;
    const [, kvHeads, headDim] = k.shape;
    const inputs = { k: valuesOf(k), width, kvHeads, headDim, cuSeqlens };
    write(next, keyConvHistory({ ...inputs, ...(history && { history: valuesOf(history) }) }));
  }

  protected override runKeyConvBackward(
    problem: KeyConvProblem & { dOut: Tensor<FloatDType> },
    outputs: { dk: Tensor<FloatDType>; dWeights: Tensor<FloatDType> },
  ): void {
    const { dk, dWeights } = keyConvBackward({ ...keyConvInputs(problem), dOut: valuesOf(problem.dOut) });
    write(outputs.dk, dk);
    write(outputs.dWeights, dWeights);
  }

  protected override runMatmul(problem: MatmulProblem, out: Tensor<FloatDType>): void {
    write(out, matmulTiled(valuesOf(problem.a), valuesOf(problem.b), problem));
  }

  protected override runEmbedding(
    { table, indices }: { table: Tensor<FloatDType>; indices: Tensor<"i32"> },
    out: Tensor<FloatDType>,
  ): void {
    write(out, embedding(valuesOf(table), integersOf(indices), table.shape[1]));
  }

  protected override runEmbeddingBackward(
    { dOut, indices }: { dOut: Tensor<FloatDType>; indices: Tensor<"i32"> },
    dTable: Tensor<FloatDType>,
  ): void {
    const [rows, channels] = dTable.shape;
    write(dTable, embeddingBackward(valuesOf(dOut), integersOf(indices), { rows, channels }));
  }

  protected override runRmsNorm(problem: RmsNormProblem, out: Tensor<FloatDType>): void {
    write(out, rmsNorm(rmsNormInputs(problem)));
  }

  protected override runRmsNormBackward(
    problem: RmsNormProblem & { dOut: Tensor<FloatDType> },
    outputs: { dx: Tensor<FloatDType>; dWeight: Tensor<FloatDType> },
  ): void {
    const { dx, dWeight } = rmsNormBackward({ ...rmsNormInputs(problem), dOut: valuesOf(problem.dOut) });
    write(outputs.dx, dx);
    write(outputs.dWeight, dWeight);
  }

  protected override runSwiglu(
    { gate, up }: { gate: Tensor<FloatDType>; up: Tensor<FloatDType> },
    out: Tensor<FloatDType>,
  ): void {
    write(out, swiglu(valuesOf(gate), valuesOf(up)));
  }

  protected override runSwigluBackward(
    problem: { dOut: Tensor<FloatDType>; gate: Tensor<FloatDType>; up: Tensor<FloatDType> },
    outputs: { dGate: Tensor<FloatDType>; dUp: Tensor<FloatDType> },
  ): void {
    const { dOut, gate, up } = problem;
    const { dGate, dUp } = swigluBackward(valuesOf(dOut), valuesOf(gate), valuesOf(up));
    write(outputs.dGate, dGate);
    write(outputs.dUp, dUp);
  }

  protected override runRope(problem: RopeProblem, out: Tensor<FloatDType>): void {
    const [, heads, headDim] = problem.x.shape;
    const positions = integersOf(problem.positions);
    write(out, rope({ ...problem, x: valuesOf(problem.x), positions, heads, headDim }));
  }

  protected override runCrossEntropy(
    { logits, targets }: CrossEntropyProblem,
    outputs: CrossEntropyResult,
  ): void {
    const columns = logits.shape[1];
    const { loss, lse } = crossEntropy({ logits: valuesOf(logits), targets: integersOf(targets), columns });
    write(outputs.loss, loss);
    write(outputs.lse, lse);
  }

  protected override runCrossEntropyBackward(
    problem: CrossEntropyProblem & { dLoss: Tensor<"f32">; lse: Tensor<"f32"> },
    dLogits: Tensor<FloatDType>,
  ): void {
    const inputs = {
      logits: valuesOf(problem.logits),
      targets: integersOf(problem.targets),
      columns: problem.logits.shape[1],
      dLoss: valuesOf(problem.dLoss),
      lse: valuesOf(problem.lse),
    };
    write(dLogits, crossEntropyBackward(inputs));
  }

  protected override runAdd(
    { a, b }: { a: Tensor<FloatDType>; b: Tensor<FloatDType> },
    out: Tensor<FloatDType>,
  ): void {
    write(out, add(valuesOf(a), valuesOf(b)));
  }

  protected override runSum(x: Tensor<FloatDType>, out: Tensor<"f32">): void {
    write(out, [sum(valuesOf(x))]);
  }

  protected override runSumSquares(x: Tensor<FloatDType>, out: Tensor<"f32">): void {
    write(out, [sumSquares(valuesOf(x))]);
  }

  protected override runCast(x: Tensor<FloatDType>, out: Tensor<FloatDType>): void {
    write(out, valuesOf(x));
  }

  protected override runAdamW(problem: AdamWProblem): void {
    const [before] = valuesOf(problem.gradientNorm);
    if (!Number.isFinite(before)) return;
    const [step, learningRate] = valuesOf(problem.schedule);
    const parameters = problem.parameters.map(({ parameter, gradient, m, v, weightDecay }) => ({
      ...{ parameter: valuesOf(parameter), gradient: valuesOf(gradient), m: valuesOf(m), v: valuesOf(v) },
      weightDecay,
    }));
    const norm = adamw({ ...problem, parameters, step, learningRate });
    write(problem.gradientNorm, [norm]);
    for (const [i, { parameter, m, v }] of problem.parameters.entries()) {
      write(parameter, parameters[i].parameter);
      write(m, parameters[i].m);
      write(v, parameters[i].v);
    }
  }

  protected override runCopyRows({ target, source, cuSeqlens, offsets }: CopyRowsProblem): void {
    const width = target.shape[1] * target.shape[2];
    const rows = valuesOf(source);
    keepValuesOf(target);
    offsets.forEach((offset, s) => {
      write(target, rows.subarray(cuSeqlens[s] * width, cuSeqlens[s + 1] * width), offset * width);
    });
  }

  protected override runUpdateCentroids(problem: UpdateCentroidsProblem): void {
    const { centroids: means, k, cuSeqlens, cuCentroids, offsets, blockSize } = problem;
    const channels = means.shape[1] * means.shape[2];
    const values = keepValuesOf(means);
    updateCentroids({ ...problem, centroids: values, k: valuesOf(k), channels });
    offsets.forEach((offset, s) => {
      const blockOf = (position: number) => cuCentroids[s] + Math.floor(position / blockSize);
      const length = cuSeqlens[s + 1] - cuSeqlens[s];
      if (length === 0) return;
      const begin = blockOf(offset) * channels;
      write(means, values.subarray(begin, (blockOf(offset + length - 1) + 1) * channels), begin);
    });
  }

  protected override runRouteCentroids(problem: RouteCentroidsProblem, indices: Tensor<"i32">): void {
    const [, heads, headDim] = problem.q.shape;
    const { indices: chosen } = routeByCentroids({
      ...problem,
      q: valuesOf(problem.q),
      centroids: valuesOf(problem.centroids),
      heads,
      kvHeads: problem.centroids.shape[1],
      headDim,
      causal: true,
    });
    integersOf(indices).set(chosen);
  }

  #writeGradients({ dq, dk, dv }: Gradients, outputs: AttentionGradients): void {
    write(outputs.dq, dq);
    write(outputs.dk, dk);
    write(outputs.dv, dv);
  }

  #writeAttention({ out, lse }: { out: Float64Array; lse: Float64Array }, outputs: AttentionResult): void {
    write(outputs.out, out);
    write(outputs.lse, lse);
  }
}

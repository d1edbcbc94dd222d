import {
  type AdamWProblem,
  type AttendBackwardProblem,
  type AttendProblem,
  type AttentionBackwardProblem,
  type AttentionGradients,
  type AttentionProblem,
  type AttentionResult,
  Backend,
  bytesPerElement,
  type CentroidsProblem,
  type CopyRowsProblem,
  type CrossEntropyProblem,
  type CrossEntropyResult,
  checkDType,
  checkShape,
  type DType,
  FLOAT_DTYPES,
  type FloatDType,
  type KeyConvHistoryProblem,
  type KeyConvProblem,
  type LinearCrossEntropyGradients,
  type LinearCrossEntropyProblem,
  type MatmulProblem,
  OPERATIONS,
  type Operation,
  type RmsNormProblem,
  type RopeProblem,
  type RouteCentroidsProblem,
  type RouteProblem,
  type Storage,
  type Tensor,
  type TypedArray,
  type UpdateCentroidsProblem,
} from "@moba-js/tensor";
import { attend } from "../kernels/attend/attend.js";
import { attendBackward, attentionBackward, windowAttentionBackward } from "../kernels/backward/backward.js";
import { keyConv, keyConvHistory } from "../kernels/conv/key_conv.js";
import { keyConvBackward } from "../kernels/conv/key_conv_backward.js";
import { copyRows, updateCentroids } from "../kernels/decode/decode.js";
import { attention, windowAttention } from "../kernels/dense/dense.js";
import { adamw } from "../kernels/nn/adamw.js";
import {
  crossEntropy,
  crossEntropyBackward,
  linearCrossEntropy,
  linearCrossEntropyBackward,
} from "../kernels/nn/cross_entropy.js";
import { add, cast, swiglu, swigluBackward } from "../kernels/nn/elementwise.js";
import { embedding, embeddingBackward } from "../kernels/nn/embedding.js";
import { matmul, matmulAdd } from "../kernels/nn/matmul.js";
import { rmsNorm, rmsNormBackward } from "../kernels/nn/rms_norm.js";
import { rope } from "../kernels/nn/rope.js";
import { sum, sumSquares } from "../kernels/nn/sum.js";
import { centroids, route, routeCentroids } from "../kernels/route/route.js";
import { Device, type DeviceOptions, type LaunchTime } from "./device.js";
import type { Graph } from "./graph.js";
import type { PoolReport } from "./memory-pool.js";
import { DevicePagedCache, type PagedCache, type PagedCacheOptions } from "./paged-cache.js";
import { type CudaStorage, pointerOf } from "./storage.js";

type Floats = Tensor<FloatDType>;

const ARRAYS = { f32: Float32Array, f16: Uint16Array, bf16: Uint16Array, i32: Int32Array, u32: Uint32Array };

/**
 * A CUDA device behind the `Backend` interface: f32, f16 and bf16, any head dimension and block size. Operations are
 * enqueued on one stream of the device; memory that is disposed serves later operations without waiting.
 */
export class CudaBackend extends Backend {
  readonly name = "cuda";
  readonly device: string;

  readonly #device: Device;

  /** @throws DeviceError where there is no addon, driver or such device; ArgumentError for options that are none. */
  constructor(options: DeviceOptions = {}) {
    super();
    this.#device = new Device(options);
    const { name, computeCapability, path, driverVersion, blasVersion } = this.#device;
    const products = blasVersion ? `cuBLASLt ${blasVersion}` : "built-in matrix products";
    const compute = (computeCapability / 10).toFixed(1);
    this.device = `${name} (compute ${compute}, kernels ${path}, ${products}, driver for CUDA ${driverVersion})`;
  }

  supports(operation: Operation, dtype: DType): boolean {
    return OPERATIONS.includes(operation) && (FLOAT_DTYPES as readonly DType[]).includes(dtype);
  }

  async time(run: () => void): Promise<number> {
    return this.#device.time(run);
  }

  /** The device time of each kernel, fill and copy that `run` enqueues, in order. Waits for them. */
  async profile(run: () => void): Promise<LaunchTime[]> {
    return this.#device.profile(run);
  }

  /**
   * Captures the operations of `run` instead of running them: `replay()` of the result enqueues them all at once, for
   * sequences that launch many small kernels. Tensors made by `run` have their values after a replay. The memory of all
   * tensors that `run` uses stays reserved for the graph until that is disposed, also when the tensors are disposed first.
   * @throws DeviceError when `run` makes tensors of given values, reads tensors, or waits.
   */
  override capture(run: () => void): Graph {
    return this.#device.capture(run);
  }

  /**
   * A cache of keys and values for sparse decoding, its memory taken at once.
   * @throws ArgumentError for extents that are none; DeviceError when there is not so much memory.
   */
  pagedCache(options: PagedCacheOptions): PagedCache {
    return new DevicePagedCache(this, this.#device, (shape, dtype) => this.empty(shape, dtype), options);
  }

  /** What this backend holds of the device's memory, temporary memory of operations included. */
  deviceMemory(): PoolReport {
    return this.#device.memory();
  }

  /** Starts a new high-water mark for {@link deviceMemory}. */
  resetPeakMemory(): void {
    this.#device.resetPeakMemory();
  }

  override zeros<D extends DType = "f32">(shape: readonly number[], dtype?: D): Tensor<D> {
    const type = (dtype ?? "f32") as D;
    checkDType("dtype", type);
    checkShape("shape", shape);
    return this.scope(() => {
      const tensor = this.empty(shape, type);
      this.#device.fill(pointerOf(tensor), tensor.size * bytesPerElement(type), 0);
      return tensor;
    });
  }

  protected allocate(byteLength: number): Storage {
    return this.#device.storage(byteLength);
  }

  protected upload(storage: Storage, data: TypedArray): void {
    this.#device.upload((storage as CudaStorage).pointer, data);
  }

  protected async download(storage: Storage, dtype: DType): Promise<TypedArray> {
    const { pointer, byteLength } = storage as CudaStorage;
    return new ARRAYS[dtype](await this.#device.download(pointer, byteLength));
  }

  protected close(): void {
    this.#device.close();
  }

  protected override runAttention(
    problem: AttentionProblem & { causal: boolean },
    outputs: AttentionResult,
  ): void {
    attention(this.#device, problem, outputs);
  }

  protected override runWindowAttention(
    problem: AttentionProblem & { window: number },
    outputs: AttentionResult,
  ): void {
    windowAttention(this.#device, problem, outputs);
  }

  protected override runCentroids(problem: CentroidsProblem, output: Tensor<"f32">): void {
    centroids(this.#device, problem, output);
  }

  protected override runRoute(problem: RouteProblem, indices: Tensor<"i32">): void {
    route(this.#device, problem, indices);
  }

  protected override runAttend(problem: AttendProblem, outputs: AttentionResult): void {
    attend(this.#device, problem, outputs);
  }

  protected override runKeyConv(
    problem: KeyConvProblem & { history?: Tensor<FloatDType> },
    out: Tensor<FloatDType>,
  ): void {
    keyConv(this.#device, problem, out);
  }

  protected override runKeyConvHistory(problem: KeyConvHistoryProblem, next: Tensor<FloatDType>): void {
    keyConvHistory(this.#device, problem, next);
  }

  protected override runCopyRows(problem: CopyRowsProblem): void {
    copyRows(this.#device, problem);
  }

  protected override runUpdateCentroids(problem: UpdateCentroidsProblem): void {
    updateCentroids(this.#device, problem);
  }

  protected override runRouteCentroids(problem: RouteCentroidsProblem, indices: Tensor<"i32">): void {
    routeCentroids(this.#device, problem, indices);
  }

  protected override runAttentionBackward(
    problem: AttentionBackwardProblem & { causal: boolean },
    outputs: AttentionGradients,
  ): void {
    attentionBackward(this.#device, problem, outputs);
  }

  protected override runWindowAttentionBackward(
    problem: AttentionBackwardProblem & { window: number },
    outputs: AttentionGradients,
  ): void {
    windowAttentionBackward(this.#device, problem, outputs);
  }

  protected override runAttendBackward(problem: AttendBackwardProblem, outputs: AttentionGradients): void {
    attendBackward(this.#device, problem, outputs);
  }

  protected override runKeyConvBackward(
    problem: KeyConvProblem & { dOut: Floats },
    outputs: { dk: Floats; dWeights: Floats },
  ): void {
    keyConvBackward(this.#device, problem, outputs);
  }

  protected override runMatmul(problem: MatmulProblem, out: Floats): void {
    matmul(this.#device, problem, out);
  }

  protected override runMatmulAdd(problem: MatmulProblem & { addend: Floats }, out: Floats): void {
    if (!matmulAdd(this.#device, problem, out)) super.runMatmulAdd(problem, out);
  }

  protected override runEmbedding(problem: { table: Floats; indices: Tensor<"i32"> }, out: Floats): void {
    embedding(this.#device, problem, out);
  }

  protected override runEmbeddingBackward(
    problem: { dOut: Floats; indices: Tensor<"i32"> },
    dTable: Floats,
  ): void {
    embeddingBackward(this.#device, problem, dTable);
  }

  protected override runRmsNorm(problem: RmsNormProblem, out: Floats): void {
    rmsNorm(this.#device, problem, out);
  }

  protected override runRmsNormBackward(
    problem: RmsNormProblem & { dOut: Floats },
    outputs: { dx: Floats; dWeight: Floats },
  ): void {
    rmsNormBackward(this.#device, problem, outputs);
  }

  protected override runRmsNormBackwardAdd(
    problem: RmsNormProblem & { dOut: Floats; addend: Floats },
    outputs: { dx: Floats; dWeight: Floats },
  ): void {
    rmsNormBackward(this.#device, problem, outputs);
  }

  protected override runSwiglu(problem: { gate: Floats; up: Floats }, out: Floats): void {
    swiglu(this.#device, problem, out);
  }

  protected override runSwigluBackward(
    problem: { dOut: Floats; gate: Floats; up: Floats },
    outputs: { dGate: Floats; dUp: Floats },
  ): void {
    swigluBackward(this.#device, problem, outputs);
  }

  protected override runRope(problem: RopeProblem, out: Floats): void {
    rope(this.#device, problem, out);
  }

  protected override runCrossEntropy(problem: CrossEntropyProblem, outputs: CrossEntropyResult): void {
    crossEntropy(this.#device, problem, outputs);
  }

  protected override runCrossEntropyBackward(
    problem: CrossEntropyProblem & { dLoss: Tensor<"f32">; lse: Tensor<"f32"> },
    dLogits: Floats,
  ): void {
    crossEntropyBackward(this.#device, problem, dLogits);
  }

  protected override runLinearCrossEntropy(problem: LinearCrossEntropyProblem, loss: Tensor<"f32">): void {
    linearCrossEntropy(this.#device, problem, loss);
  }

  protected override runLinearCrossEntropyBackward(
    problem: LinearCrossEntropyProblem & { dLoss: Tensor<"f32"> },
    outputs: LinearCrossEntropyGradients,
  ): void {
    linearCrossEntropyBackward(this.#device, problem, outputs);
  }

  protected override runAdd(problem: { a: Floats; b: Floats }, out: Floats): void {
    add(this.#device, problem, out);
  }

  protected override runSum(x: Floats, out: Tensor<"f32">): void {
    sum(this.#device, x, out);
  }

  protected override runSumSquares(x: Floats, out: Tensor<"f32">): void {
    sumSquares(this.#device, x, out);
  }

  protected override runCast(x: Floats, out: Floats): void {
    cast(this.#device, x, out);
  }

  protected override runAdamW(problem: AdamWProblem): void {
    adamw(this.#device, problem);
  }
}

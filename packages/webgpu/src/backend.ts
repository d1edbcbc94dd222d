/// <reference types="@webgpu/types" />
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
  checkPositiveInteger,
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
  type Storage,
  storageArray,
  type Tensor,
  type TypedArray,
  type UpdateCentroidsProblem,
} from "@moba-js/tensor";
import { adamw } from "../kernels/adamw.js";
import { attend } from "../kernels/attend.js";
import { attention } from "../kernels/attention.js";
import { attendBackward, attentionBackward } from "../kernels/backward.js";
import { copyRows, updateCentroids } from "../kernels/cache.js";
import { crossEntropy, crossEntropyBackward } from "../kernels/cross-entropy.js";
import { add, cast, swiglu, swigluBackward } from "../kernels/elementwise.js";
import { embedding, embeddingBackward } from "../kernels/embedding.js";
import { keyConv, keyConvBackward, keyConvHistory } from "../kernels/key-conv.js";
import { matmul } from "../kernels/matmul.js";
import { rmsNorm, rmsNormBackward } from "../kernels/norm.js";
import type { Mask } from "../kernels/range.js";
import { sum } from "../kernels/reductions.js";
import { rope } from "../kernels/rope.js";
import { centroids, route, routeCentroids } from "../kernels/route.js";
import { Commands } from "./commands.js";
import type { Context } from "./context.js";
import { checkTier, type DeviceOptions, describeDevice, openDevice, type Tier, tierOf } from "./device.js";
import type { PooledBuffer, PoolReport } from "./memory.js";
import type { CompileProgress } from "./pipelines.js";
import { Stopwatch } from "./stopwatch.js";

/** Options of a {@link WebGpuBackend}. */
export interface WebGpuOptions {
  /** What to make use of. Default: the highest tier that the device reaches. */
  tier?: Tier;
  /** Bytes of freed buffers that are kept for reuse at most. Default 1.5 GiB: the workspace of slots, and what else is freed with it. */
  maxKeptBytes?: number;
  /**
   * Bytes of workspace for the slots of routed attention: an operation that needs more runs in waves of heads, then of queries.
   * Default 1 GiB, or what one buffer may hold.
   */
  maxWorkspaceBytes?: number;
}

/** Options of {@link openWebGpu}. */
export interface OpenWebGpuOptions extends WebGpuOptions, DeviceOptions {}

/**
 * Opens a WebGPU device and a backend on it: in browsers and Deno on their own WebGPU, in Node on the package `webgpu` (Dawn), which
 * has to be installed beside this one. The device closes with the backend.
 * @throws DeviceError when there is no WebGPU, no device, or none of the tier that was asked for; ArgumentError for options out of
 *   range.
 */
export async function openWebGpu(options: OpenWebGpuOptions = {}): Promise<WebGpuBackend> {
  const device = await openDevice(options);
  const backend = new WebGpuBackend(device, options);
  backend.ownsDevice = true;
  return backend;
}

/**
 * The WebGPU backend: kernels in WGSL for f32, f16 and bf16 tensors, computing in float32.
 *
 * Operations are collected and handed to the device many at a time. Errors that WebGPU tells late (out of memory) reach the
 * next `data()`. After a lost device every call throws `DeviceError`; open a new backend to go on.
 */
export class WebGpuBackend extends Backend {
  readonly name = "webgpu";
  readonly device: string;
  /** What the kernels make use of. */
  readonly tier: Tier;
  /** @internal Whether the device closes with the backend. */
  ownsDevice = false;
  readonly #commands: Commands;
  readonly #context: Context;
  readonly #stopwatch: Stopwatch;

  /**
   * A backend on a device of one's own, which stays open when the backend closes. Several may share one.
   * @throws ArgumentError for options out of range; DeviceError for a tier that the device does not reach.
   */
  constructor(device: GPUDevice, options: WebGpuOptions = {}) {
    super();
    const { tier, maxKeptBytes = 1.5 * 2 ** 30, maxWorkspaceBytes = 2 ** 30 } = options;
    checkTier(tier);
    checkPositiveInteger("maxKeptBytes", maxKeptBytes);
    checkPositiveInteger("maxWorkspaceBytes", maxWorkspaceBytes);
    this.tier = tierOf(device, tier);
    this.device = `${describeDevice(device)}, tier ${this.tier}`;
    const matrices = this.tier === "subgroup-matrix";
    this.#commands = new Commands(device, { maxKeptBytes, f16: matrices || this.tier === "shader-f16" });
    this.#stopwatch = new Stopwatch(this.#commands);
    this.#context = {
      commands: this.#commands,
      workgroup: {
        storage: device.limits.maxComputeWorkgroupStorageSize,
        invocations: device.limits.maxComputeInvocationsPerWorkgroup,
      },
      subgroupSize: this.tier === "plain" ? 0 : (device.adapterInfo?.subgroupMinSize ?? 4),
      matrices,
      maxWorkspaceBytes,
    };
  }

  supports(_operation: Operation, dtype: DType): boolean {
    return (FLOAT_DTYPES as readonly DType[]).includes(dtype);
  }

  /** What the buffers of this backend hold, those kept for reuse included. */
  poolReport(): PoolReport {
    return this.#commands.pool.report();
  }

  /**
   * Compiles the kernels that `run` needs, side by side, so that the first real run need not wait for them. While `run` runs, operations
   * check and allocate as always, but compute nothing: dispose what it makes.
   * @param run calls operations with the dtypes, head dimensions and options to come
   * @throws DeviceError when the device is lost.
   */
  async compileAsync(run: () => void, progress?: CompileProgress): Promise<void> {
    this.#commands.checkAlive();
    await this.#commands.pipelines.collect(run, progress);
  }

  time(run: () => void): Promise<number> {
    return this.#stopwatch.time(run);
  }

  protected allocate(byteLength: number): Storage {
    this.#commands.checkAlive();
    return this.#commands.pool.take(byteLength);
  }

  protected upload(storage: Storage, data: TypedArray): void {
    this.#commands.upload(storage as PooledBuffer, data);
  }

  protected async download(storage: Storage, dtype: DType): Promise<TypedArray> {
    const bytes = await this.#commands.download(storage as PooledBuffer);
    const result = storageArray(dtype, storage.byteLength / bytesPerElement(dtype));
    new Uint8Array(result.buffer).set(new Uint8Array(bytes));
    return result;
  }

  protected close(): void {
    this.#commands.close();
    if (this.ownsDevice) this.#commands.device.destroy();
  }

  protected override runAttention(
    problem: AttentionProblem & { causal: boolean },
    outputs: AttentionResult,
  ): void {
    attention(this.#context, problem, denseMask(problem), outputs);
  }

  protected override runAttentionBackward(
    problem: AttentionBackwardProblem & { causal: boolean },
    outputs: AttentionGradients,
  ): void {
    attentionBackward(this.#context, problem, denseMask(problem), outputs);
  }

  protected override runWindowAttention(
    problem: AttentionProblem & { window: number },
    outputs: AttentionResult,
  ): void {
    attention(this.#context, problem, windowMask(problem), outputs);
  }

  protected override runWindowAttentionBackward(
    problem: AttentionBackwardProblem & { window: number },
    outputs: AttentionGradients,
  ): void {
    attentionBackward(this.#context, problem, windowMask(problem), outputs);
  }

  protected override runCentroids(problem: CentroidsProblem, output: Tensor<"f32">): void {
    centroids(this.#context, problem, output);
  }

  protected override runRoute(problem: RouteProblem, indices: Tensor<"i32">): void {
    route(this.#context, problem, indices);
  }

  protected override runAttend(problem: AttendProblem, outputs: AttentionResult): void {
    attend(this.#context, problem, outputs);
  }

  protected override runAttendBackward(problem: AttendBackwardProblem, outputs: AttentionGradients): void {
    attendBackward(this.#context, problem, outputs);
  }

  protected override runKeyConv(
    problem: KeyConvProblem & { history?: Tensor<FloatDType> },
    out: Tensor<FloatDType>,
  ): void {
    keyConv(this.#context, problem, out);
  }

  protected override runKeyConvHistory(problem: KeyConvHistoryProblem, next: Tensor<FloatDType>): void {
    keyConvHistory(this.#context, problem, next);
  }

  protected override runKeyConvBackward(
    problem: KeyConvProblem & { dOut: Tensor<FloatDType> },
    outputs: { dk: Tensor<FloatDType>; dWeights: Tensor<FloatDType> },
  ): void {
    keyConvBackward(this.#context, problem, outputs);
  }

  protected override runMatmul(problem: MatmulProblem, out: Tensor<FloatDType>): void {
    matmul(this.#context, problem, out);
  }

  protected override runEmbedding(
    problem: { table: Tensor<FloatDType>; indices: Tensor<"i32"> },
    out: Tensor<FloatDType>,
  ): void {
    embedding(this.#context, problem, out);
  }

  protected override runEmbeddingBackward(
    problem: { dOut: Tensor<FloatDType>; indices: Tensor<"i32"> },
    dTable: Tensor<FloatDType>,
  ): void {
    embeddingBackward(this.#context, problem, dTable);
  }

  protected override runRmsNorm(problem: RmsNormProblem, out: Tensor<FloatDType>): void {
    rmsNorm(this.#context, problem, out);
  }

  protected override runRmsNormBackward(
    problem: RmsNormProblem & { dOut: Tensor<FloatDType> },
    outputs: { dx: Tensor<FloatDType>; dWeight: Tensor<FloatDType> },
  ): void {
    rmsNormBackward(this.#context, problem, outputs);
  }

  protected override runSwiglu(
    { gate, up }: { gate: Tensor<FloatDType>; up: Tensor<FloatDType> },
    out: Tensor<FloatDType>,
  ): void {
    swiglu(this.#context, gate, up, out);
  }

  protected override runSwigluBackward(
    problem: { dOut: Tensor<FloatDType>; gate: Tensor<FloatDType>; up: Tensor<FloatDType> },
    outputs: { dGate: Tensor<FloatDType>; dUp: Tensor<FloatDType> },
  ): void {
    swigluBackward(this.#context, problem, outputs);
  }

  protected override runRope(problem: RopeProblem, out: Tensor<FloatDType>): void {
    rope(this.#context, problem, out);
  }

  protected override runCrossEntropy(problem: CrossEntropyProblem, outputs: CrossEntropyResult): void {
    crossEntropy(this.#context, problem, outputs);
  }

  protected override runCrossEntropyBackward(
    problem: CrossEntropyProblem & { dLoss: Tensor<"f32">; lse: Tensor<"f32"> },
    dLogits: Tensor<FloatDType>,
  ): void {
    crossEntropyBackward(this.#context, problem, dLogits);
  }

  protected override runAdd(
    { a, b }: { a: Tensor<FloatDType>; b: Tensor<FloatDType> },
    out: Tensor<FloatDType>,
  ): void {
    add(this.#context, a, b, out);
  }

  protected override runSum(x: Tensor<FloatDType>, out: Tensor<"f32">): void {
    sum(this.#context, x, out, false);
  }

  protected override runSumSquares(x: Tensor<FloatDType>, out: Tensor<"f32">): void {
    sum(this.#context, x, out, true);
  }

  protected override runCast(x: Tensor<FloatDType>, out: Tensor<FloatDType>): void {
    cast(this.#context, x, out, x.size);
  }

  protected override runAdamW(problem: AdamWProblem): void {
    adamw(this.#context, problem);
  }

  protected override runCopyRows(problem: CopyRowsProblem): void {
    copyRows(this.#context, problem);
  }

  protected override runUpdateCentroids(problem: UpdateCentroidsProblem): void {
    updateCentroids(this.#context, problem);
  }

  protected override runRouteCentroids(problem: RouteCentroidsProblem, indices: Tensor<"i32">): void {
    routeCentroids(this.#context, problem, indices);
  }
}

const denseMask = ({ causal }: { causal: boolean }): Mask => ({ kind: causal ? "causal" : "all" });

const windowMask = ({ window }: { window: number }): Mask => ({ kind: "window", span: window });

import {
  type AttendBackwardProblem,
  type AttendProblem,
  type AttentionGradients,
  type AttentionProblem,
  type AttentionResult,
  Backend,
  type CentroidsProblem,
  DeviceError,
  type DType,
  decode,
  encodeInto,
  FLOAT_DTYPES,
  type FloatDType,
  type KeyConvHistoryProblem,
  type KeyConvProblem,
  type Operation,
  type RouteProblem,
  type Routing,
  type Storage,
  storageArray,
  type Tensor,
  type TypedArray,
} from "@moba-js/tensor";
import type { BlockRouting } from "./layout.js";
import type { AttentionInputs } from "./oracle/attention.js";
import { centroids } from "./oracle/centroids.js";
import { type KeyConvInputs, keyConv, keyConvBackward, keyConvHistory } from "./oracle/key-conv.js";
import { routeBlocks } from "./oracle/route.js";
import { denseRange, rangeAttention, windowRange } from "./paths/range-attention.js";
import { attendSlots, attendSlotsBackward } from "./paths/slot-plan.js";

/** Every JavaScript host has it, but not the language's own library. */
declare const performance: { now(): number };

/** Host memory: one typed array. */
class HostStorage implements Storage {
  readonly byteLength: number;
  constructor(public array: TypedArray) {
    this.byteLength = array.byteLength;
  }
  free(): void {
    this.array = new Uint16Array(0);
  }
}

const arrayOf = (tensor: Tensor): TypedArray => (tensor.storage as HostStorage).array;

/** A tensor's values in float64. */
const valuesOf = (tensor: Tensor): Float64Array => decode(arrayOf(tensor), tensor.dtype);

/** Writes float64 results into a tensor, rounded to its dtype. */
const write = (tensor: Tensor, values: Float64Array): void =>
  encodeInto(values, tensor.dtype, arrayOf(tensor));

/** A routing's indices on the host. */
function blockRouting({ indices, blockSize, causal }: Routing): BlockRouting {
  return { indices: arrayOf(indices) as Int32Array, slots: indices.shape[2], blockSize, causal };
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

/**
 * The CPU backend: the float64 oracle behind the `Backend` interface, for f32, f16 and bf16. Inputs are widened to float64,
 * results rounded once at the end. Each operation is computed at once, on the calling thread.
 */
export class ReferenceBackend extends Backend {
  readonly name = "cpu";
  readonly device = "plain TypeScript, float64 inside, one thread";

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
      const probe = storageArray(dtype, 1);
      return new HostStorage(storageArray(dtype, byteLength / probe.BYTES_PER_ELEMENT));
    } catch (cause) {
      throw new DeviceError(this.name, `no memory for ${byteLength} bytes (${(cause as Error).message})`);
    }
  }

  protected upload(storage: Storage, data: TypedArray): void {
    (storage as HostStorage).array.set(data);
  }

  protected async download(storage: Storage): Promise<TypedArray> {
    return (storage as HostStorage).array.slice();
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

  protected override runCentroids(
    { k, cuSeqlens, blockSize }: CentroidsProblem,
    output: Tensor<"f32">,
  ): void {
    const [, kvHeads, headDim] = k.shape;
    write(output, centroids({ k: valuesOf(k), kvHeads, headDim, cuSeqlens, blockSize }));
  }

  protected override runRoute(problem: RouteProblem, indices: Tensor<"i32">): void {
    const routing = routeBlocks({ ...problem, q: valuesOf(problem.q), k: valuesOf(problem.k) });
    arrayOf(indices).set(routing.indices);
  }

  protected override runAttend(problem: AttendProblem, outputs: AttentionResult): void {
    const routing = blockRouting(problem.routing);
    this.#writeAttention(attendSlots({ ...attentionInputs(problem), routing }), outputs);
  }

  protected override runAttendBackward(problem: AttendBackwardProblem, outputs: AttentionGradients): void {
    const { dq, dk, dv } = attendSlotsBackward({
      ...attentionInputs(problem),
      routing: blockRouting(problem.routing),
      dOut: valuesOf(problem.dOut),
      out: valuesOf(problem.out),
      lse: valuesOf(problem.lse),
    });
    write(outputs.dq, dq);
    write(outputs.dk, dk);
    write(outputs.dv, dv);
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

  #writeAttention({ out, lse }: { out: Float64Array; lse: Float64Array }, outputs: AttentionResult): void {
    write(outputs.out, out);
    write(outputs.lse, lse);
  }
}

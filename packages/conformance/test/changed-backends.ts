import {
  type AttentionInputs,
  type AttentionOutputs,
  type BlockRouting,
  type CentroidInputs,
  type Gradients,
  type KeyConvInputs,
  ReferenceBackend,
  type RouteInputs,
} from "@moba-js/reference";
import {
  type AttendBackwardProblem,
  type AttendProblem,
  type AttentionGradients,
  type AttentionProblem,
  type AttentionResult,
  type CentroidsProblem,
  decode,
  encodeInto,
  type FloatDType,
  type KeyConvProblem,
  type RouteProblem,
  type Tensor,
  type TypedArray,
} from "@moba-js/tensor";

/** The host array behind a tensor of the CPU backend. */
export const arrayOf = (tensor: Tensor): TypedArray =>
  (tensor.storage as unknown as { array: TypedArray }).array;

export const valuesOf = (tensor: Tensor): Float64Array => decode(arrayOf(tensor), tensor.dtype);

export const write = (tensor: Tensor, values: Float64Array): void =>
  encodeInto(values, tensor.dtype, arrayOf(tensor));

export const attentionInputs = (problem: AttentionProblem): AttentionInputs => ({
  ...problem,
  q: valuesOf(problem.q),
  k: valuesOf(problem.k),
  v: valuesOf(problem.v),
});

export const blockRouting = ({ routing }: AttendProblem): BlockRouting => ({
  indices: arrayOf(routing.indices) as Int32Array,
  slots: routing.indices.shape[2],
  blockSize: routing.blockSize,
  causal: routing.causal,
});

const writeAttention = ({ out, lse }: AttentionOutputs, outputs: AttentionResult): void => {
  write(outputs.out, out);
  write(outputs.lse, lse);
};

type BackwardInputs = AttentionInputs & AttentionOutputs & { routing: BlockRouting; dOut: Float64Array };
type ConvInputs = Omit<KeyConvInputs, "history">;

/** What a {@link ChangedBackend} computes in its own way; the rest is the CPU backend's. `dtype` is the inputs'. */
export interface Changes {
  attention?(inputs: AttentionInputs & { causal: boolean }, dtype: FloatDType): AttentionOutputs;
  windowAttention?(inputs: AttentionInputs & { window: number }, dtype: FloatDType): AttentionOutputs;
  centroids?(inputs: CentroidInputs): Float64Array;
  /** Gets the right routing, to spoil it. */
  route?(inputs: RouteInputs, right: Int32Array, slots: number): void;
  attend?(inputs: AttentionInputs & { routing: BlockRouting }, dtype: FloatDType): AttentionOutputs;
  attendBackward?(inputs: BackwardInputs, dtype: FloatDType): Gradients;
  keyConv?(inputs: KeyConvInputs): Float64Array;
  keyConvBackward?(inputs: ConvInputs & { dOut: Float64Array }): { dk: Float64Array; dWeights: Float64Array };
}

/** The CPU backend with some operations replaced. */
export class ChangedBackend extends ReferenceBackend {
  constructor(private readonly changes: Changes) {
    super();
  }

  protected override runAttention(
    problem: AttentionProblem & { causal: boolean },
    outputs: AttentionResult,
  ): void {
    const { attention } = this.changes;
    if (!attention) {
      super.runAttention(problem, outputs);
      return;
    }
    writeAttention(
      attention({ ...attentionInputs(problem), causal: problem.causal }, problem.dtype),
      outputs,
    );
  }

  protected override runWindowAttention(
    problem: AttentionProblem & { window: number },
    outputs: AttentionResult,
  ): void {
    const { windowAttention } = this.changes;
    if (!windowAttention) {
      super.runWindowAttention(problem, outputs);
      return;
    }
    const inputs = { ...attentionInputs(problem), window: problem.window };
    writeAttention(windowAttention(inputs, problem.dtype), outputs);
  }

  protected override runCentroids(problem: CentroidsProblem, output: Tensor<"f32">): void {
    const { centroids } = this.changes;
    if (!centroids) {
      super.runCentroids(problem, output);
      return;
    }
    const [, kvHeads, headDim] = problem.k.shape;
    write(output, centroids({ ...problem, k: valuesOf(problem.k), kvHeads, headDim }));
  }

  protected override runRoute(problem: RouteProblem, indices: Tensor<"i32">): void {
    super.runRoute(problem, indices);
    const inputs = { ...problem, q: valuesOf(problem.q), k: valuesOf(problem.k) };
    this.changes.route?.(inputs, arrayOf(indices) as Int32Array, problem.slots);
  }

  protected override runAttend(problem: AttendProblem, outputs: AttentionResult): void {
    const { attend } = this.changes;
    if (!attend) {
      super.runAttend(problem, outputs);
      return;
    }
    const inputs = { ...attentionInputs(problem), routing: blockRouting(problem) };
    writeAttention(attend(inputs, problem.dtype), outputs);
  }

  protected override runAttendBackward(problem: AttendBackwardProblem, outputs: AttentionGradients): void {
    const { attendBackward } = this.changes;
    if (!attendBackward) {
      super.runAttendBackward(problem, outputs);
      return;
    }
    const inputs = {
      ...attentionInputs(problem),
      routing: blockRouting(problem),
      dOut: valuesOf(problem.dOut),
      out: valuesOf(problem.out),
      lse: valuesOf(problem.lse),
    };
    const { dq, dk, dv } = attendBackward(inputs, problem.dtype);
    write(outputs.dq, dq);
    write(outputs.dk, dk);
    write(outputs.dv, dv);
  }

  protected override runKeyConv(
    problem: KeyConvProblem & { history?: Tensor<FloatDType> },
    out: Tensor<FloatDType>,
  ): void {
    const { keyConv } = this.changes;
    if (!keyConv) {
      super.runKeyConv(problem, out);
      return;
    }
    const { history, ...rest } = problem;
    const inputs = { ...rest, k: valuesOf(problem.k), weights: valuesOf(problem.weights) };
    write(out, keyConv({ ...inputs, ...(history && { history: valuesOf(history) }) }));
  }

  protected override runKeyConvBackward(
    problem: KeyConvProblem & { dOut: Tensor<FloatDType> },
    outputs: { dk: Tensor<FloatDType>; dWeights: Tensor<FloatDType> },
  ): void {
    const { keyConvBackward } = this.changes;
    if (!keyConvBackward) {
      super.runKeyConvBackward(problem, outputs);
      return;
    }
    const { k, weights, dOut } = problem;
    const inputs = { ...problem, k: valuesOf(k), weights: valuesOf(weights), dOut: valuesOf(dOut) };
    const { dk, dWeights } = keyConvBackward(inputs);
    write(outputs.dk, dk);
    write(outputs.dWeights, dWeights);
  }
}

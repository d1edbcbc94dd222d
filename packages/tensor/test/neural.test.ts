import { describe, expect, it } from "vitest";
import { ArgumentError, type Backend, DTypeError, ShapeError, UnsupportedError } from "../src/index.js";
import { HostBackend } from "./host-backend.js";

type Arguments = Record<string, unknown>;

/** A method with valid arguments, each of which can be replaced by its name. */
interface Method {
  readonly call: (backend: Backend, args: Record<string, never>) => unknown;
  readonly valid: (backend: Backend) => Arguments;
  /** A bad argument, the error's class, and what it names if not the argument. */
  readonly faults: readonly (readonly [
    argument: string,
    bad: (backend: Backend) => unknown,
    error: unknown,
    named?: string,
  ])[];
}

const f32 =
  (...shape: number[]) =>
  (backend: Backend) =>
    backend.zeros(shape);
const f16 =
  (...shape: number[]) =>
  (backend: Backend) =>
    backend.zeros(shape, "f16");
const i32 =
  (...shape: number[]) =>
  (backend: Backend) =>
    backend.zeros(shape, "i32");
const value = (bad: unknown) => () => bad;
const disposed = (backend: Backend) => {
  const tensor = backend.zeros([1]);
  tensor.dispose();
  return tensor;
};

/** What every float tensor argument refuses. */
const noFloats = (argument: string) =>
  [
    [argument, value(null), ArgumentError],
    [argument, disposed, ArgumentError],
    [argument, () => new HostBackend().zeros([1]), ArgumentError],
    [argument, i32(2), DTypeError],
  ] as const;

const METHODS: Record<string, Method> = {
  matmul: {
    call: (b, { a, b: other, options }) => b.matmul(a, other, options),
    valid: (b) => ({ a: b.zeros([2, 3]), b: b.zeros([3, 4]), options: {} }),
    faults: [
      ...noFloats("a"),
      ["a", f32(2), ShapeError],
      ["b", f32(4, 3), ShapeError],
      ["b", f16(3, 4), DTypeError],
      ["options", value({ transposeB: true }), ShapeError, "b"],
      ["options", value({ transposeA: 1 }), ArgumentError, "transposeA"],
      ["options", (b) => ({ addend: b.zeros([2, 3]) }), ShapeError, "addend"],
      ["options", (b) => ({ addend: b.zeros([2, 4], "f16") }), DTypeError, "addend"],
      ["options", value(null), ArgumentError],
    ],
  },
  embedding: {
    call: (b, { table, indices }) => b.embedding(table, indices),
    valid: (b) => ({ table: b.zeros([5, 3]), indices: b.zeros([4], "i32") }),
    faults: [
      ...noFloats("table"),
      ["table", f32(5), ShapeError],
      ["indices", f32(4), DTypeError],
      ["indices", i32(2, 2), ShapeError],
    ],
  },
  embeddingBackward: {
    call: (b, { dOut, indices, rows }) => b.embeddingBackward(dOut, indices, rows),
    valid: (b) => ({ dOut: b.zeros([4, 3]), indices: b.zeros([4], "i32"), rows: 5 }),
    faults: [
      ...noFloats("dOut"),
      ["indices", i32(3), ShapeError],
      ["rows", value(0), ArgumentError],
      ["rows", value(1.5), ArgumentError],
    ],
  },
  rmsNorm: {
    call: (b, { x, weight, options }) => b.rmsNorm(x, weight, options),
    valid: (b) => ({ x: b.zeros([2, 3]), weight: b.zeros([3]), options: {} }),
    faults: [
      ...noFloats("x"),
      ["weight", f32(2), ShapeError],
      ["weight", f16(3), DTypeError],
      ["options", value({ epsilon: -1 }), ArgumentError, "epsilon"],
      ["options", value({ epsilon: Number.NaN }), ArgumentError, "epsilon"],
    ],
  },
  rmsNormBackward: {
    call: (b, { dOut, x, weight }) => b.rmsNormBackward(dOut, x, weight),
    valid: (b) => ({ dOut: b.zeros([2, 3]), x: b.zeros([2, 3]), weight: b.zeros([3]) }),
    faults: [...noFloats("dOut"), ["dOut", f32(3, 2), ShapeError], ["dOut", f16(2, 3), DTypeError]],
  },
  swiglu: {
    call: (b, { gate, up }) => b.swiglu(gate, up),
    valid: (b) => ({ gate: b.zeros([2, 3]), up: b.zeros([2, 3]) }),
    faults: [...noFloats("gate"), ["up", f32(3, 2), ShapeError], ["up", f16(2, 3), DTypeError]],
  },
  swigluBackward: {
    call: (b, { dOut, gate, up }) => b.swigluBackward(dOut, gate, up),
    valid: (b) => ({ dOut: b.zeros([2, 3]), gate: b.zeros([2, 3]), up: b.zeros([2, 3]) }),
    faults: [...noFloats("gate"), ["dOut", f32(6), ShapeError], ["up", f32(6), ShapeError]],
  },
  rope: {
    call: (b, { x, positions, options }) => b.rope(x, positions, options),
    valid: (b) => ({ x: b.zeros([2, 1, 4]), positions: b.zeros([2], "i32"), options: {} }),
    faults: [
      ...noFloats("x"),
      ["x", f32(2, 1, 3), ShapeError],
      ["positions", i32(3), ShapeError],
      ["positions", f32(2), DTypeError],
      ["options", value({ base: 0 }), ArgumentError, "base"],
      ["options", value({ inverse: "yes" }), ArgumentError, "inverse"],
    ],
  },
  crossEntropy: {
    call: (b, { logits, targets }) => b.crossEntropy(logits, targets),
    valid: (b) => ({ logits: b.zeros([2, 5]), targets: b.zeros([2], "i32") }),
    faults: [
      ...noFloats("logits"),
      ["logits", f32(2, 0), ShapeError],
      ["targets", i32(3), ShapeError],
      ["targets", f32(2), DTypeError],
    ],
  },
  crossEntropyBackward: {
    call: (b, { dLoss, logits, targets, lse }) => b.crossEntropyBackward(dLoss, logits, targets, lse),
    valid: (b) => ({
      dLoss: b.zeros([2]),
      logits: b.zeros([2, 5]),
      targets: b.zeros([2], "i32"),
      lse: b.zeros([2]),
    }),
    faults: [
      ["dLoss", f16(2), DTypeError],
      ["dLoss", f32(3), ShapeError],
      ["lse", f32(3), ShapeError],
      ["lse", f16(2), DTypeError],
    ],
  },
  add: {
    call: (b, { a, b: other }) => b.add(a, other),
    valid: (b) => ({ a: b.zeros([2]), b: b.zeros([2]) }),
    faults: [...noFloats("a"), ["b", f32(3), ShapeError], ["b", f16(2), DTypeError]],
  },
  sum: { call: (b, { x }) => b.sum(x), valid: (b) => ({ x: b.zeros([2]) }), faults: noFloats("x") },
  sumSquares: {
    call: (b, { x }) => b.sumSquares(x),
    valid: (b) => ({ x: b.zeros([2]) }),
    faults: noFloats("x"),
  },
  cast: {
    call: (b, { x, dtype }) => b.cast(x, dtype),
    valid: (b) => ({ x: b.zeros([2]), dtype: "bf16" }),
    faults: [...noFloats("x"), ["dtype", value("i32"), DTypeError], ["dtype", value("f8"), DTypeError]],
  },
  linearCrossEntropy: {
    call: (b, { x, weight, targets }) => b.linearCrossEntropy(x, weight, targets),
    valid: (b) => ({ x: b.zeros([3, 4]), weight: b.zeros([5, 4]), targets: b.zeros([3], "i32") }),
    faults: [
      ...noFloats("x"),
      ["weight", f32(5, 3), ShapeError],
      ["weight", f32(0, 4), ShapeError],
      ["weight", f16(5, 4), DTypeError],
      ["targets", i32(4), ShapeError],
      ["targets", f32(3), DTypeError],
    ],
  },
  linearCrossEntropyBackward: {
    call: (b, { dLoss, x, targets }) => b.linearCrossEntropyBackward(dLoss, x, x, targets),
    valid: (b) => ({ dLoss: b.zeros([3]), x: b.zeros([3, 4]), targets: b.zeros([3], "i32") }),
    faults: [
      ["dLoss", f32(4), ShapeError],
      ["dLoss", f16(3), DTypeError],
      ["targets", i32(4), ShapeError],
    ],
  },
  adamw: {
    call: (b, { parameter, gradient, m, v, weightDecay, schedule, gradientNorm, options }) =>
      b.adamw([{ parameter, gradient, m, v, weightDecay }], schedule, gradientNorm, options),
    valid: (b) => ({
      parameter: b.zeros([2]),
      gradient: b.zeros([2], "bf16"),
      m: b.zeros([2]),
      v: b.zeros([2]),
      weightDecay: 0.1,
      schedule: b.zeros([2]),
      gradientNorm: b.zeros([]),
      options: { clipNorm: 1 },
    }),
    faults: [
      ["parameter", f16(2), DTypeError, "parameters[0].parameter"],
      ["gradient", f32(3), ShapeError, "parameters[0].gradient"],
      ["m", f32(3), ShapeError, "parameters[0].m"],
      ["v", f16(2), DTypeError, "parameters[0].v"],
      ["weightDecay", value(-1), ArgumentError, "parameters[0].weightDecay"],
      ["schedule", f32(3), ShapeError],
      ["gradientNorm", f32(1), ShapeError],
      ["gradientNorm", f16(), DTypeError],
      ["options", value({ beta1: 1 }), ArgumentError, "beta1"],
      ["options", value({ clipNorm: Number.NaN }), ArgumentError, "clipNorm"],
    ],
  },
  attentionBackward: {
    call: (b, { dOut, q, k, out, lse, options }) => b.attentionBackward(dOut, q, k, k, out, lse, options),
    valid: (b) => ({
      dOut: b.zeros([3, 2, 4]),
      q: b.zeros([3, 2, 4]),
      k: b.zeros([3, 1, 4]),
      out: b.zeros([3, 2, 4]),
      lse: b.zeros([3, 2]),
      options: {},
    }),
    faults: [
      ...noFloats("q"),
      ["dOut", f32(3, 1, 4), ShapeError],
      ["out", f16(3, 2, 4), DTypeError],
      ["lse", f32(2, 3), ShapeError],
      ["options", value({ causal: 1 }), ArgumentError, "causal"],
    ],
  },
  windowAttentionBackward: {
    call: (b, { q, k, lse, options }) => b.windowAttentionBackward(q, q, k, k, q, lse, options),
    valid: (b) => ({
      q: b.zeros([3, 2, 4]),
      k: b.zeros([3, 1, 4]),
      lse: b.zeros([3, 2]),
      options: { window: 2 },
    }),
    faults: [
      ["options", value({ window: 0 }), ArgumentError, "window"],
      ["options", value({}), ArgumentError, "window"],
    ],
  },
  copyRows: {
    call: (b, { target, source, options }) => b.copyRows(target, source, options),
    valid: (b) => ({
      target: b.zeros([9, 1, 4]),
      source: b.zeros([3, 1, 4]),
      options: { cuSeqlens: [0, 2, 3], offsets: [0, 8] },
    }),
    faults: [
      ...noFloats("target"),
      ["source", f16(3, 1, 4), DTypeError],
      ["source", f32(3, 2, 4), ShapeError],
      ["options", value({ cuSeqlens: [0, 2, 3], offsets: [0, 9] }), ArgumentError, "offsets[1]"],
      ["options", value({ cuSeqlens: [0, 2, 3], offsets: [-1, 0] }), ArgumentError, "offsets[0]"],
      ["options", value({ cuSeqlens: [0, 2, 3], offsets: [0] }), ArgumentError, "offsets"],
      ["options", value({ cuSeqlens: [0, 4], offsets: [0] }), ArgumentError, "cuSeqlens[1]"],
    ],
  },
  updateCentroids: {
    call: (b, { centroids, k, options }) => b.updateCentroids(centroids, k, options),
    valid: (b) => ({
      centroids: b.zeros([2, 1, 4]),
      k: b.zeros([3, 1, 4]),
      options: { offsets: [1], blockSize: 2, cuCentroids: [0, 2] },
    }),
    faults: [
      ["centroids", f16(2, 1, 4), DTypeError],
      ["k", f32(3, 2, 4), ShapeError],
      [
        "options",
        value({ offsets: [2], blockSize: 2, cuCentroids: [0, 2] }),
        ArgumentError,
        "cuCentroids[1]",
      ],
      ["options", value({ offsets: [1], blockSize: 0, cuCentroids: [0, 2] }), ArgumentError, "blockSize"],
      [
        "options",
        value({ offsets: [1], blockSize: 2, cuCentroids: [0, 1, 2] }),
        ArgumentError,
        "cuCentroids",
      ],
    ],
  },
  routeCentroids: {
    call: (b, { q, centroids, options }) => b.routeCentroids(q, centroids, options),
    valid: (b) => ({
      q: b.zeros([1, 2, 4]),
      centroids: b.zeros([3, 1, 4]),
      options: { cuSeqlensK: [0, 5], blockSize: 2, topK: 2 },
    }),
    faults: [
      ...noFloats("q"),
      ["centroids", f32(3, 3, 4), ShapeError],
      ["centroids", f32(3, 1, 5), ShapeError],
      ["centroids", f32(2, 1, 4), ArgumentError, "cuCentroids[1]"],
      ["options", value({ cuSeqlensK: [0, 5], blockSize: 2, topK: 0 }), ArgumentError, "topK"],
      ["options", value({ cuSeqlensK: {}, blockSize: 2, topK: 1 }), ArgumentError, "cuSeqlensK"],
    ],
  },
};

describe.each(Object.entries(METHODS))("%s", (_, { call, valid, faults }) => {
  it("gets past the checks with valid arguments", () => {
    const backend = new HostBackend();
    expect(() => call(backend, valid(backend) as never)).toThrow(UnsupportedError);
  });

  it("names what is wrong, and makes nothing", () => {
    for (const [argument, bad, error, named = argument] of faults) {
      const backend = new HostBackend();
      const args = { ...valid(backend), [argument]: bad(backend) };
      const before = backend.memory();
      const run = () => call(backend, args as never);
      expect(run, `${argument}: ${String(args[argument])}`).toThrow(error as never);
      expect(run).toThrow(new RegExp(`^${named.replace(/[[\].]/g, "\\$&")}: expected`));
      expect(backend.memory()).toEqual(before);
    }
  });
});

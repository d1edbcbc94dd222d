import { ReferenceBackend } from "@moba-js/reference";
import {
  type Backend,
  DTYPES,
  type DType,
  type FloatDType,
  OPERATIONS,
  type Operation,
  Routing,
  sizeOf,
} from "@moba-js/tensor";
import type { Check, Subject } from "./check.js";
import type { HostTensor, Named } from "./compare.js";
import type { Outcome } from "./report.js";
import { observed } from "./trial.js";

/** Arguments of type `never`, so that whatever is wrong can stand where a type forbids it. */
type Unchecked = Readonly<Record<string, never>>;

/** A call that must be refused. */
export interface Fault {
  /** What is wrong. */
  readonly title: string;
  /** The name of the error's class. */
  readonly error: "ArgumentError" | "ShapeError" | "DTypeError";
  /** The argument that the error must name. */
  readonly argument: string;
  /** Makes what the call needs, and gives the call. */
  prepare(backend: Backend, tensors: Unchecked): () => unknown;
}

/** A public method with valid arguments, to be spoiled one at a time. */
interface Method {
  readonly name: string;
  readonly operations: readonly Operation[];
  /** Its tensor arguments. */
  readonly tensors: Readonly<Record<string, Pick<HostTensor, "shape" | "dtype">>>;
  /** The tensor that the others have to fit. */
  readonly leading: string;
  /** Its options in a valid call. */
  readonly options: Readonly<Record<string, unknown>>;
  call(backend: Backend, tensors: Unchecked, options: never, routing: Routing): unknown;
}

// Two sequences, of 4 and 2 tokens.
const PACKING = { cuSeqlens: [0, 4, 6] };
const [TOKENS, HEADS, KV_HEADS, HEAD_DIM, WIDTH, BLOCK_SIZE] = [6, 4, 2, 3, 3, 2];

/** The methods of a backend that take tensors. */
function methodsOf(dtype: DType): Method[] {
  const q = { shape: [TOKENS, HEADS, HEAD_DIM], dtype };
  const k = { shape: [TOKENS, KV_HEADS, HEAD_DIM], dtype };
  const lse = { shape: [TOKENS, HEADS], dtype: "f32" } as const;
  const weights = { shape: [WIDTH, KV_HEADS, HEAD_DIM], dtype };
  const history = { shape: [2, WIDTH - 1, KV_HEADS, HEAD_DIM], dtype };
  const attention = { tensors: { q, k, v: k }, leading: "q" };
  return [
    {
      ...attention,
      name: "attention",
      operations: ["attention"],
      options: { ...PACKING, cuSeqlensK: PACKING.cuSeqlens, causal: true, scale: 1 },
      call: (backend, t, options) => backend.attention(t.q, t.k, t.v, options),
    },
    {
      ...attention,
      name: "windowAttention",
      operations: ["windowAttention"],
      options: { ...PACKING, cuSeqlensK: PACKING.cuSeqlens, window: 2, scale: 1 },
      call: (backend, t, options) => backend.windowAttention(t.q, t.k, t.v, options),
    },
    {
      name: "centroids",
      operations: ["centroids"],
      tensors: { k },
      leading: "k",
      options: { ...PACKING, blockSize: BLOCK_SIZE },
      call: (backend, t, options) => backend.centroids(t.k, options),
    },
    {
      name: "route",
      operations: ["route"],
      tensors: { q, k },
      leading: "q",
      options: { ...PACKING, cuSeqlensK: PACKING.cuSeqlens, blockSize: BLOCK_SIZE, topK: 2, causal: true },
      call: (backend, t, options) => backend.route(t.q, t.k, options),
    },
    {
      ...attention,
      name: "attend",
      operations: ["attend"],
      options: { scale: 1 },
      call: (backend, t, options, routing) => backend.attend(t.q, t.k, t.v, routing, options),
    },
    {
      name: "attendBackward",
      operations: ["attendBackward"],
      tensors: { dOut: q, q, k, v: k, out: q, lse },
      leading: "q",
      options: { scale: 1 },
      call: (backend, t, options, routing) =>
        backend.attendBackward(t.dOut, t.q, t.k, t.v, t.out, t.lse, routing, options),
    },
    {
      ...attention,
      name: "moba",
      operations: ["route", "attend"],
      options: {
        ...PACKING,
        cuSeqlensK: PACKING.cuSeqlens,
        blockSize: BLOCK_SIZE,
        topK: 2,
        causal: true,
        scale: 1,
      },
      call: (backend, t, options) => backend.moba(t.q, t.k, t.v, options),
    },
    {
      name: "keyConv",
      operations: ["keyConv"],
      tensors: { k, weights },
      leading: "k",
      options: PACKING,
      call: (backend, t, options) => backend.keyConv(t.k, t.weights, options),
    },
    {
      name: "keyConv, continued",
      operations: ["keyConv"],
      tensors: { history, k, weights },
      leading: "k",
      options: PACKING,
      call: (backend, t, options) =>
        backend.keyConv(t.k, t.weights, { ...(options as object), history: t.history }),
    },
    {
      name: "keyConvHistory",
      operations: ["keyConv"],
      tensors: { k, history },
      leading: "k",
      options: { ...PACKING, width: WIDTH },
      call: (backend, t, options) => {
        const { width, ...others } = options as { width: number };
        return backend.keyConvHistory(t.k, width, { ...others, history: t.history });
      },
    },
    {
      name: "keyConvBackward",
      operations: ["keyConvBackward"],
      tensors: { dOut: k, k, weights },
      leading: "k",
      options: PACKING,
      call: (backend, t, options) => backend.keyConvBackward(t.dOut, t.k, t.weights, options),
    },
  ];
}

/** A routing that fits the methods' tensors: every query attends its own block alone. */
function validRouting(backend: Backend): Routing {
  const ownBlocks = [0, 0, 1, 1, 0, 0].flatMap((block) => new Array<number>(HEADS).fill(block));
  return backend.createRouting(ownBlocks, [TOKENS, HEADS, 1], { ...PACKING, blockSize: BLOCK_SIZE });
}

/** A tensor of zeros, disposed. */
function disposedTensor(backend: Backend, shape: readonly number[], dtype: DType): unknown {
  const tensor = backend.zeros(shape, dtype);
  tensor.dispose();
  return tensor;
}

/** What can be wrong with one tensor argument of a method. */
function tensorFaults(method: Method, argument: string): Fault[] {
  const { shape, dtype } = method.tensors[argument];
  const fault = (what: string, error: Fault["error"], bad: (backend: Backend) => unknown): Fault => ({
    title: `${method.name}: ${argument} ${what}`,
    error,
    argument,
    prepare: (backend, tensors) => {
      const spoiled = { ...tensors, [argument]: bad(backend) as never };
      const routing = validRouting(backend);
      return () => method.call(backend, spoiled, method.options as never, routing);
    },
  });
  const faults = [
    fault("null", "ArgumentError", () => null),
    fault("an array", "ArgumentError", () => [1, 2, 3]),
    fault("disposed", "ArgumentError", (backend) => disposedTensor(backend, shape, dtype)),
    fault("of another backend", "ArgumentError", () => new ReferenceBackend().zeros(shape, dtype)),
    fault("of integers", "DTypeError", (backend) => backend.zeros(shape, "i32")),
    fault("of one dimension more", "ShapeError", (backend) => backend.zeros([...shape, 1], dtype)),
    fault("of one dimension less", "ShapeError", (backend) => backend.zeros(shape.slice(1), dtype)),
  ];
  if (argument === method.leading) return faults;
  const wider = [...shape.slice(0, -1), shape[shape.length - 1] + 1];
  const otherDType = dtype === "f32" ? "f16" : "f32";
  return [
    ...faults,
    fault("wider than it may be", "ShapeError", (backend) => backend.zeros(wider, dtype)),
    fault(`in ${otherDType}`, "DTypeError", (backend) => backend.zeros(shape, otherDType)),
  ];
}

/** Bad values of an option, by its name: the value, and what the error names when not the option itself. */
const BAD_VALUES: Readonly<Record<string, readonly (readonly [value: unknown, argument?: string])[]>> = {
  cuSeqlens: [
    [[1, 4, 6], "cuSeqlens[0]"],
    [[0, 4, 3, 6], "cuSeqlens[2]"],
    [[0, -1, 6], "cuSeqlens[1]"],
    [[0, 4, 7], "cuSeqlens[2]"],
    [[0, 4, 5], "cuSeqlens[2]"],
    [[0, 1.5, 6], "cuSeqlens[1]"],
    [[0, Number.NaN, 6], "cuSeqlens[1]"],
    [[]],
    ["0,6"],
    [null],
  ],
  cuSeqlensK: [[[0, 6]], [[0, 9, 6], "cuSeqlensK[1]"], [[0, 5, 4], "cuSeqlensK[2]"], [{}]],
  causal: [["yes"], [1], [null]],
  scale: [[Number.NaN], [Number.POSITIVE_INFINITY], ["1"], [null]],
};
const BAD_COUNTS = [
  [0],
  [-1],
  [1.5],
  [Number.NaN],
  [Number.POSITIVE_INFINITY],
  [2 ** 31],
  ["2"],
  [undefined],
] as const;

/** What can be wrong with one option of a method. */
function optionFaults(method: Method, option: string): Fault[] {
  return (BAD_VALUES[option] ?? BAD_COUNTS).map(([value, argument = option]) => ({
    title: `${method.name}: ${option} = ${Array.isArray(value) ? `[${value}]` : String(value)}`,
    error: "ArgumentError",
    argument,
    prepare: (backend, tensors) => {
      const routing = validRouting(backend);
      const options = { ...method.options, [option]: value } as never;
      return () => method.call(backend, tensors, options, routing);
    },
  }));
}

/** No options at all: null. */
const noOptionsFault = (method: Method): Fault => ({
  title: `${method.name}: options = null`,
  error: "ArgumentError",
  argument: "options",
  prepare: (backend, tensors) => {
    const routing = validRouting(backend);
    return () => method.call(backend, tensors, null as never, routing);
  },
});

/** What can be wrong with the routing of a method that takes one. */
function routingFaults(method: Method): Fault[] {
  const fault = (
    what: string,
    error: Fault["error"],
    argument: string,
    bad: (backend: Backend) => unknown,
  ): Fault => ({
    title: `${method.name}: routing ${what}`,
    error,
    argument,
    prepare: (backend, tensors) => {
      const routing = bad(backend) as Routing;
      return () => method.call(backend, tensors, method.options as never, routing);
    },
  });
  return [
    fault("undefined", "ArgumentError", "routing", () => undefined),
    fault("an object", "ArgumentError", "routing", () => ({})),
    fault("disposed", "ArgumentError", "routing.indices", (backend) => {
      const routing = validRouting(backend);
      routing.dispose();
      return routing;
    }),
    fault("of another backend", "ArgumentError", "routing.indices", () =>
      validRouting(new ReferenceBackend()),
    ),
    fault("of f32 indices", "DTypeError", "routing.indices", (backend) => {
      return new Routing(backend.zeros([TOKENS, HEADS, 1]) as never, validRouting(backend));
    }),
    fault("of fewer tokens", "ShapeError", "q", (backend) =>
      backend.createRouting([0], [1, 1, 1], { blockSize: BLOCK_SIZE }),
    ),
  ];
}

/** Every fault of a method's arguments. */
const faultsOf = (method: Method): Fault[] => [
  ...Object.keys(method.tensors).flatMap((argument) => tensorFaults(method, argument)),
  ...Object.keys(method.options).flatMap((option) => optionFaults(method, option)),
  ...(method.tensors.history ? [] : [noOptionsFault(method)]), // a history is an option
  ...(method.name.startsWith("attend") ? routingFaults(method) : []),
];

/** Faults of memory and of own patterns, which no operation's support stands before. */
function otherFaults(dtype: DType): Fault[] {
  const fault = (
    title: string,
    error: Fault["error"],
    argument: string,
    call: (backend: Backend) => unknown,
  ): Fault => ({ title, error, argument, prepare: (backend) => () => call(backend) });
  const pattern = (
    what: string,
    error: Fault["error"],
    argument: string,
    indices: readonly number[],
    shape: readonly number[] = [4, 1, 2],
    options: object = { blockSize: 2 },
  ) =>
    fault(`createRouting: ${what}`, error, argument, (backend) =>
      backend.createRouting(indices, shape as never, options as never),
    );
  const good = [0, -1, 0, -1, 1, 0, 1, 0]; // 4 tokens of 1 head: blocks 0, 0, {1, 0}, {1, 0}
  return [
    fault("tensor: fewer data than its shape", "ShapeError", "shape", (b) => b.tensor([1, 2], [3], dtype)),
    fault("tensor: a negative extent", "ShapeError", "shape", (b) => b.tensor([1, 2], [-1, -2], dtype)),
    fault("tensor: a broken extent", "ShapeError", "shape", (b) => b.tensor([1], [0.5, 2], dtype)),
    fault("tensor: no shape", "ShapeError", "shape", (b) => b.tensor([1], undefined as never, dtype)),
    fault("tensor: no data", "ArgumentError", "data", (b) => b.tensor(null as never, [1], dtype)),
    fault("tensor: text", "ArgumentError", "data", (b) => b.tensor("12" as never, [2], dtype)),
    fault("tensor: no such dtype", "DTypeError", "dtype", (b) => b.tensor([1], [1], "f8" as never)),
    fault("tensor: a fraction in i32", "ArgumentError", "data[1]", (b) => b.tensor([1, 0.5], [2], "i32")),
    fault("tensor: NaN in i32", "ArgumentError", "data[0]", (b) => b.tensor([Number.NaN], [1], "i32")),
    fault("tensor: too large for i32", "ArgumentError", "data[0]", (b) => b.tensor([2 ** 31], [1], "i32")),
    fault("tensor: negative in u32", "ArgumentError", "data[0]", (b) => b.tensor([-1], [1], "u32")),
    fault("zeros: a shape of NaN", "ShapeError", "shape", (b) => b.zeros([Number.NaN], dtype)),
    fault("zeros: no such dtype", "DTypeError", "dtype", (b) => b.zeros([1], "float32" as never)),
    fault("scope: a body that returns a promise", "ArgumentError", "body", (b) => b.scope(async () => 1)),
    pattern("a block twice", "ArgumentError", "indices[2, 0, 1]", good.with(5, 1)),
    pattern("a later block", "ArgumentError", "indices[0, 0, 1]", good.with(1, 1)),
    pattern("a negative block", "ArgumentError", "indices[0, 0, 1]", good.with(1, -2)),
    pattern("a fraction", "ArgumentError", "indices[3, 0, 1]", good.with(7, 0.5)),
    pattern("no own block", "ArgumentError", "indices[2, 0]", good.with(4, -1)),
    pattern("no such block", "ArgumentError", "indices[0, 0, 0]", good.with(0, 2), [4, 1, 2], {
      blockSize: 2,
      causal: false,
    }),
    pattern("fewer entries than its shape", "ShapeError", "shape", good.slice(1)),
    pattern("a shape of two dimensions", "ShapeError", "shape", good, [4, 2]),
    pattern("no options", "ArgumentError", "options", good, [4, 1, 2], null as never),
    pattern("blockSize = 0", "ArgumentError", "blockSize", good, [4, 1, 2], { blockSize: 0 }),
    pattern("causal = 1", "ArgumentError", "causal", good, [4, 1, 2], { blockSize: 2, causal: 1 }),
    pattern("cuSeqlens that overrun", "ArgumentError", "cuSeqlens[1]", good, [4, 1, 2], {
      blockSize: 2,
      cuSeqlens: [0, 5],
    }),
  ];
}

/** Runs a bad call and judges the error, and that the call made nothing. */
function judgeFault(backend: Backend, tensors: Unchecked, fault: Fault): Outcome {
  const check = fault.title;
  const failed = (message: string): Outcome => ({ check, passed: false, message });
  return backend.scope(() => {
    const call = fault.prepare(backend, tensors);
    const before = backend.memory();
    const error = thrownBy(call);
    const after = backend.memory();
    if (error === undefined) return failed("no error");
    const expected = `${fault.error} naming ${fault.argument}`;
    if (error.name !== fault.error || (error as { argument?: unknown }).argument !== fault.argument) {
      return failed(`expected ${expected}, got ${error.name}: ${error.message}`);
    }
    if (!error.message.includes(fault.argument)) return failed(`the message lacks ${fault.argument}`);
    if (after.tensors !== before.tensors || after.bytes !== before.bytes) return failed("it left a tensor");
    return { check, passed: true };
  });
}

/** The error that `call` throws, if it throws. */
function thrownBy(call: () => unknown): Error | undefined {
  try {
    call();
    return undefined;
  } catch (error) {
    return error instanceof Error ? error : new Error(`not an Error was thrown: ${String(error)}`);
  }
}

/** Zeros for a method's tensor arguments. */
const inputsOf = ({ tensors }: Method): Named<HostTensor> =>
  Object.fromEntries(
    Object.entries(tensors).map(([name, { shape, dtype }]) => [
      name,
      { shape, dtype, values: new Float64Array(sizeOf(shape)) },
    ]),
  );

/** A valid call of an operation that the backend denies: it must say so. */
function judgeDenied(backend: Backend, tensors: Unchecked, method: Method): Outcome {
  return backend.scope(() => {
    const routing = validRouting(backend);
    const error = thrownBy(() => method.call(backend, tensors, method.options as never, routing));
    const passed = error?.name === "UnsupportedError";
    const got = error ? `${error.name}: ${error.message}` : "no error";
    return { check: "UnsupportedError", passed, ...(!passed && { message: `got ${got}` }) };
  });
}

/** Every bad call of a dtype, with the tensors that it is made with. */
export const badCalls = (dtype: FloatDType): { fault: Fault; inputs: Named<HostTensor> }[] => [
  ...methodsOf(dtype).flatMap((method) =>
    faultsOf(method).map((fault) => ({ fault, inputs: inputsOf(method) })),
  ),
  ...otherFaults(dtype).map((fault) => ({ fault, inputs: {} })),
];

/** Bad input gets its typed error, makes no tensor and changes none; what is not supported says so. */
export function badInputChecks({ backend, dtype }: Subject): Check[] {
  const check = (
    title: string,
    needs: readonly Operation[],
    inputs: Named<HostTensor>,
    judge: (tensors: Unchecked) => Outcome[],
  ): Check => ({
    title,
    needs,
    run: () => observed(backend, { inputs }, async (tensors) => judge(tensors as unknown as Unchecked)),
  });
  const methods = methodsOf(dtype);
  /** When it is called, and not when the checks are made: `supports` may throw. */
  const supports = ({ operations }: Method) => operations.every((one) => backend.supports(one, dtype));
  return [
    ...methods.map((method) =>
      check(method.name, method.operations, inputsOf(method), (tensors) =>
        faultsOf(method).map((fault) => judgeFault(backend, tensors, fault)),
      ),
    ),
    ...methods.map((method) =>
      check(`${method.name}, where it is not supported`, [], inputsOf(method), (tensors) =>
        supports(method) ? [] : [judgeDenied(backend, tensors, method)],
      ),
    ),
    check("memory and own patterns", [], {}, (tensors) =>
      otherFaults(dtype).map((fault) => judgeFault(backend, tensors, fault)),
    ),
    check("supports answers with a boolean", [], {}, () =>
      OPERATIONS.map((operation) => {
        const answers = DTYPES.map((any) => backend.supports(operation, any));
        return { check: operation, passed: answers.every((answer) => typeof answer === "boolean") };
      }),
    ),
  ];
}

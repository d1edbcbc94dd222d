import { ReferenceBackend } from "@moba-js/reference";
import {
  ArgumentError,
  DTypeError,
  encode,
  FLOAT_DTYPES,
  leakCheck,
  MobaError,
  ShapeError,
  type Tensor,
} from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import { badCalls, type Fault } from "../src/bad-input.js";
import type { HostTensor, Named } from "../src/compare.js";
import { Random } from "../src/random.js";

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
console.log(`bad input: seed ${seed}`);

const CLASSES = { ArgumentError, DTypeError, ShapeError };

/** What a call throws. */
function thrownBy(call: () => unknown): unknown {
  try {
    return void call();
  } catch (error) {
    return error;
  }
}

/** Makes the bad call on a fresh backend and looks at the error, the inputs and the memory after it. */
async function refuse({ fault, inputs }: { fault: Fault; inputs: Named<HostTensor> }): Promise<void> {
  const backend = new ReferenceBackend();
  const random = new Random(`${seed} ${fault.title}`);
  await leakCheck(backend, async () => {
    const tensors: Record<string, Tensor> = {};
    const data = new Map<Tensor, ArrayLike<number>>();
    for (const [name, { shape, dtype, values }] of Object.entries(inputs)) {
      const stored = encode(random.gaussians(values.length), dtype);
      tensors[name] = backend.tensor(stored, shape, dtype);
      data.set(tensors[name], stored);
    }
    backend.scope(() => {
      const call = fault.prepare(backend, tensors as unknown as Readonly<Record<string, never>>);
      const before = backend.memory();
      const error = thrownBy(call);
      expect(error).toBeInstanceOf(MobaError);
      expect(error).toBeInstanceOf(CLASSES[fault.error]);
      expect(error).toMatchObject({ name: fault.error, argument: fault.argument });
      expect((error as Error).message).toMatch(/^\S.*: expected .*, got .+/);
      expect((error as Error).message.startsWith(fault.argument)).toBe(true);
      expect(backend.memory()).toEqual(before);
    });
    for (const [tensor, stored] of data) {
      expect(await tensor.data()).toEqual(stored);
      tensor.dispose();
    }
  });
  expect(backend.memory()).toMatchObject({ tensors: 0, bytes: 0 });
}

describe.each(FLOAT_DTYPES)("bad input in %s", (dtype) => {
  const calls = badCalls(dtype);

  it("has at least 60 cases, all different", () => {
    expect(calls.length).toBeGreaterThanOrEqual(60);
    expect(new Set(calls.map(({ fault }) => fault.title)).size).toBe(calls.length);
  });

  it.each(calls.map((call) => ({ title: call.fault.title, call })))("$title", ({ call }) => refuse(call));
});

describe("NaN and Infinity as data", () => {
  const tokens = 40;
  const shape = [tokens, 1, 2];

  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
    "%s in a value reaches the rows that attend it and no others",
    async (bad) => {
      const backend = new ReferenceBackend();
      const random = new Random(`${seed} ${bad}`);
      await leakCheck(backend, async () => {
        const key = 13;
        const [q, k] = [0, 1].map(() => backend.tensor(random.gaussians(2 * tokens), shape));
        const v = backend.tensor(random.gaussians(2 * tokens).with(2 * key, bad), shape);
        const { out, lse, routing } = backend.moba(q, k, v, { blockSize: 8, topK: 2 });
        const [values, indices] = [await out.values(), await routing.indices.data()];
        for (let t = 0; t < tokens; t++) {
          const attends = t >= key && indices.subarray(2 * t, 2 * t + 2).includes(1);
          expect(values[2 * t], `row ${t}`).toSatisfy((x: number) =>
            attends ? Object.is(x, bad) : Number.isFinite(x),
          );
          expect(values[2 * t + 1], `row ${t}`).toSatisfy(Number.isFinite);
        }
        expect((await lse.values()).every(Number.isFinite)).toBe(true);
        for (const tensor of [q, k, v, out, lse, routing]) tensor.dispose();
      });
    },
  );
});

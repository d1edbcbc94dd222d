import { beforeEach, describe, expect, it } from "vitest";
import {
  ArgumentError,
  DeviceError,
  DTypeError,
  isTensor,
  LeakError,
  type LiveTensor,
  leakCheck,
  packUniform,
  ShapeError,
  UnsupportedError,
} from "../src/index.js";
import { HostBackend } from "./host-backend.js";

let backend: HostBackend;
beforeEach(() => {
  backend = new HostBackend();
});

describe("tensors", () => {
  it("hold values rounded to their dtype", async () => {
    using t = backend.tensor([1, 1 / 3], [2], "f16");
    expect([...(await t.data())]).toEqual([0x3c00, 0x3555]);
    expect([...(await t.values())]).toEqual([1, 0.333251953125]);
    using raw = backend.tensor(Uint16Array.of(0x3f80), [1], "bf16");
    expect([...(await raw.values())]).toEqual([1]);
    using zeros = backend.zeros([2, 2], "i32");
    expect([...(await zeros.data())]).toEqual([0, 0, 0, 0]);
    expect(isTensor(t) && !isTensor({})).toBe(true);
  });

  it("do not see later changes of the array they were made of", async () => {
    const data = Float32Array.of(1);
    using t = backend.tensor(data, [1]);
    data[0] = 2;
    expect([...(await t.data())]).toEqual([1]);
  });

  it("refuse wrong shapes, dtypes and data with typed errors", () => {
    expect(() => backend.tensor([1, 2], [3])).toThrow(ShapeError);
    expect(() => backend.tensor([1], [-1])).toThrow(ShapeError);
    expect(() => backend.tensor([1], [0.5])).toThrow(ShapeError);
    expect(() => backend.tensor([1], [1], "f64" as never)).toThrow(DTypeError);
    expect(() => backend.tensor(null as never, [1])).toThrow(ArgumentError);
    expect(() => backend.zeros([1e6])).toThrow(DeviceError);
    expect(backend.memory()).toEqual({ tensors: 0, bytes: 0, peakBytes: 0 });
  });

  it("share memory through reshape and free it with the last", async () => {
    const t = backend.zeros([2, 6]);
    const r = t.reshape([3, 4]);
    expect(() => t.reshape([5])).toThrow(ShapeError);
    t.dispose();
    t.dispose();
    expect(backend.freed).toBe(0);
    expect(backend.memory().bytes).toBe(48);
    r.dispose();
    expect(backend.freed).toBe(1);
    expect(backend.memory()).toEqual({ tensors: 0, bytes: 0, peakBytes: 48 });
    expect(() => r.storage).toThrow(ArgumentError);
    await expect(r.data()).rejects.toThrow(ArgumentError);
  });

  it("pack a uniform batch", () => {
    using batch = backend.zeros([2, 3, 4, 5]);
    const { packed, cuSeqlens } = packUniform(batch);
    expect(packed.shape).toEqual([6, 4, 5]);
    expect([...cuSeqlens]).toEqual([0, 3, 6]);
    packed.dispose();
    expect(() => packUniform(backend.zeros([1]))).toThrow(ShapeError);
  });

  it("that are collected undisposed give their memory back", async () => {
    const { gc } = globalThis;
    if (!gc) throw new Error("the test runner must expose gc");
    (() => backend.zeros([100]))();
    for (let i = 0; i < 50 && backend.freed === 0; i++) {
      gc();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    expect(backend.memory()).toEqual({ tensors: 0, bytes: 0, peakBytes: 400 });
  });
});

describe("scopes", () => {
  it("dispose what was made inside, except the result", () => {
    const kept = backend.scope(() => {
      backend.zeros([1]);
      const inner = backend.scope(() => [backend.zeros([2]), { a: backend.zeros([3]) }] as const);
      expect(backend.memory().tensors).toBe(3);
      return inner[1];
    });
    expect(backend.memory().tensors).toBe(1);
    kept.a.dispose();
    expect(backend.memory().tensors).toBe(0);
  });

  it("dispose everything when the body throws or returns a promise", () => {
    const failing = () =>
      backend.scope(() => {
        backend.zeros([1]);
        throw new RangeError("no");
      });
    expect(failing).toThrow(RangeError);
    expect(() => backend.scope(async () => backend.zeros([1]))).toThrow(ArgumentError);
    expect(backend.memory().tensors).toBe(0);
  });

  it("show what they hold, which is the same when it has left them", () => {
    const seen: LiveTensor[] = [];
    const kept = backend.scope(() => {
      const made = backend.scope(() => {
        backend.zeros([3], "i32");
        const result = backend.zeros([2]);
        seen.push(...backend.liveTensors());
        return result;
      });
      expect(backend.memory()).toEqual({ tensors: 1, bytes: 8, peakBytes: 20 });
      return made;
    });
    expect(seen.map(({ description }) => description)).toEqual(["i32 [3]", "f32 [2]"]);
    expect(backend.liveTensors()).toEqual([seen[1]]);
    expect(backend.liveTensors()[0]).toBe(seen[1]);
    kept.dispose();
    expect(backend.liveTensors()).toEqual([]);
  });

  it("allow disposing inside", () => {
    backend.scope(() => backend.zeros([1]).dispose());
    expect(backend.freed).toBe(1);
  });
});

describe("the leak check", () => {
  it("passes a tidy body's result on and throws for a leak, saying where it was made", async () => {
    expect(await leakCheck(backend, () => backend.zeros([1]).dispose() ?? 7)).toBe(7);
    const leak = leakCheck(backend, async () => {
      backend.zeros([5, 7], "bf16");
    });
    await expect(leak).rejects.toThrow(LeakError);
    await expect(leak).rejects.toThrow(/bf16 \[5, 7\][\s\S]*backend\.test\.ts/);
    expect(backend.debug.traceTensors).toBe(false);
  });
});

describe("a backend", () => {
  it("that is closed refuses work, once", async () => {
    const t = backend.zeros([1]);
    backend.dispose();
    backend.dispose();
    expect(backend.closed).toBe(1);
    expect(() => backend.zeros([1])).toThrow(DeviceError);
    await expect(t.data()).rejects.toThrow(DeviceError);
    t.dispose();
  });

  it("that lacks an operation says so and makes nothing", () => {
    using q = backend.zeros([4, 1, 2]);
    expect(() => backend.attention(q, q, q)).toThrow(UnsupportedError);
    expect(() => backend.moba(q, q, q, { blockSize: 2, topK: 1 })).toThrow(UnsupportedError);
    expect(() => backend.centroids(q, { blockSize: 2 })).toThrow(UnsupportedError);
    expect(backend.memory().tensors).toBe(1);
  });

  it("checks patterns of one's own", () => {
    const route = (indices: number[], slots: number, options = {}) =>
      backend.createRouting(indices, [indices.length / slots, 1, slots], { blockSize: 2, ...options });
    route([0, -1, 0, -1, 1, 0, 1, -1], 2).dispose();
    expect(() => route([0, -1, 0, -1, 2, 0, 1, -1], 2)).toThrow(
      "indices[2, 0, 0]: expected -1 or a block from 0 to 1",
    );
    expect(() => route([0, -1, 0, -1, 1, 1, 1, -1], 2)).toThrow(
      "indices[2, 0, 1]: expected every block at most once",
    );
    expect(() => route([0, -1, 0, -1, 0, -1, 1, -1], 2)).toThrow(
      "indices[2, 0]: expected a row that has the query's own",
    );
    expect(() => route([0, 0.5], 1)).toThrow("indices[1, 0, 0]");
    expect(() => route([0, 0], 1, { cuSeqlens: [0, 1] })).toThrow("cuSeqlens");
    route([2], 1, { cuSeqlensK: [0, 5] }).dispose();
    route([1], 1, { cuSeqlensK: [0, 5], causal: false }).dispose();
    expect(() => backend.createRouting([0], [2, 1, 1], { blockSize: 2 })).toThrow(ShapeError);
    expect(backend.memory().tensors).toBe(0);
  });
});

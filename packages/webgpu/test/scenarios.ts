/// <reference types="@webgpu/types" />
import { type ConformanceOptions, type ConformanceReport, runConformance } from "@moba-js/conformance";
import { type PackedTokens, PRESETS, Trainer, Transformer } from "@moba-js/model";
import { ReferenceBackend } from "@moba-js/reference";
import { type Backend, DeviceError, type Tensor } from "@moba-js/tensor";
import { openDevice, openWebGpu, type PoolReport, type Tier, WebGpuBackend } from "../src/index.js";

/*
 * What is tried on a device, in Node and in a page alike: each function takes and returns plain data.
 */

/** Which device to open: the adapter's own limits, or those that every WebGPU device has. */
export interface Device {
  readonly tier: Tier;
  readonly limits: "adapter" | "default";
}

/** A device, watched for what the compiler says of its shaders, and for errors that nobody caught. */
async function watchedDevice({ tier, limits }: Device): Promise<{ device: GPUDevice; complaints: string[] }> {
  let device = await openDevice({ tier });
  if (limits === "default") {
    const { adapterInfo } = device;
    device.destroy();
    device = await defaultDevice();
    Object.defineProperty(device, "adapterInfo", { value: adapterInfo });
  }
  return { device, complaints: watch(device).complaints };
}

/** Collects what compilers say of a device's shaders, but that a name is old, and errors that nobody caught. */
function watch(device: GPUDevice): { complaints: string[]; kernels: string[] } {
  const [complaints, kernels]: string[][] = [[], []];
  device.addEventListener("uncapturederror", (event) =>
    complaints.push((event as GPUUncapturedErrorEvent).error.message),
  );
  const create = device.createShaderModule.bind(device);
  device.createShaderModule = (descriptor) => {
    const module = create(descriptor);
    kernels.push(descriptor.label as string);
    module.getCompilationInfo().then(({ messages }) => {
      for (const { type, message, lineNum } of messages) {
        if (type === "info" || message.includes("deprecated")) continue;
        complaints.push(`${descriptor.label}:${lineNum}: ${type}: ${message}`);
      }
    });
    return module;
  };
  return { complaints, kernels };
}

/** A device with no feature and no limit beyond the default ones. */
async function defaultDevice(): Promise<GPUDevice> {
  const { navigator } = globalThis as { navigator?: { gpu?: GPU } };
  const name: string = "webgpu";
  const gpu = navigator?.gpu ?? (await import(name)).create(["enable-dawn-features=disable_workgroup_init"]);
  keptAlive.push(gpu);
  const adapter = (await gpu.requestAdapter()) as GPUAdapter;
  return adapter.requestDevice();
}

const keptAlive: GPU[] = [];

/** The conformance suite. */
export async function conformance({
  device: wanted,
  options,
}: {
  device: Device;
  options: ConformanceOptions;
}): Promise<{
  report: ConformanceReport;
  complaints: string[];
  limits: Record<string, number>;
  pool: PoolReport;
}> {
  const { device, complaints } = await watchedDevice(wanted);
  const backend = new WebGpuBackend(device, { tier: wanted.tier });
  const report = await runConformance(backend, options);
  const { maxComputeWorkgroupStorageSize: storage, maxStorageBuffersPerShaderStage: buffers } = device.limits;
  const pool = backend.poolReport();
  backend.dispose();
  return { report, complaints, limits: { storage, buffers }, pool };
}

/**
 * Compiles what f16 attention needs in the tiers that no CPU device has, on Dawn's null device, which has every feature and computes
 * nothing. Says which kernels were compiled, and what the compiler complained of.
 */
export async function compilingExperimental({
  tier,
}: {
  tier: Tier;
}): Promise<{ tier: Tier; kernels: string[]; complaints: string[] }> {
  const name: string = "webgpu";
  const gpu: GPU = (await import(name)).create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]);
  keptAlive.push(gpu);
  const adapter = (await gpu.requestAdapter()) as GPUAdapter;
  const features = ["subgroups", "shader-f16", "chromium-experimental-subgroup-matrix"] as GPUFeatureName[];
  const device = await adapter.requestDevice({ requiredFeatures: features });
  const config = { componentType: "f16", resultComponentType: "f32", M: 16, N: 16, K: 16 };
  Object.defineProperty(device, "adapterInfo", {
    value: { subgroupMinSize: 32, subgroupMatrixConfigs: [config] },
  });
  // The null device has less workgroup memory than those that the tensor cores are on.
  Object.defineProperty(device, "limits", {
    value: { ...copyOf(device.limits), maxComputeWorkgroupStorageSize: 49152 },
  });
  const { complaints, kernels } = watch(device);
  const backend = new WebGpuBackend(device, { tier });
  const tensor = () => backend.zeros([256, 2, 64], "f16");
  await backend
    .compileAsync(() =>
      backend.scope(() => {
        const [q, k, v, dOut] = [tensor(), tensor(), tensor(), tensor()];
        const { out, lse, routing } = backend.moba(q, k, v, { blockSize: 128, topK: 2 });
        backend.attendBackward(dOut, q, k, v, out, lse, routing);
        backend.attention(q, k, v);
        backend.matmul(q.reshape([256, 128]), k.reshape([256, 128]), { transposeB: true });
        backend.cast(backend.swiglu(q, k), "f32");
      }),
    )
    .catch((error) => complaints.push(String(error)));
  const isOfMemory = (complaint: string) => complaint.includes("total use of workgroup storage");
  return { tier: backend.tier, kernels, complaints: complaints.filter((each) => !isOfMemory(each)) };
}

/** A device's limits as a plain object. */
function copyOf(limits: GPUSupportedLimits): Record<string, number> {
  const copy: Record<string, number> = {};
  for (const name in limits) copy[name] = limits[name as keyof GPUSupportedLimits] as number;
  return copy;
}

/** Many small operations: what the pool holds after some of them, and after all. */
export async function manyOperations({ count }: { count: number }): Promise<PoolReport[]> {
  const backend = await openWebGpu({ tier: "plain" });
  let x: Tensor = backend.tensor([1, 2, 3, 4], [4]);
  const one = backend.tensor([1, -1, 1, -1], [4]);
  const reports: PoolReport[] = [];
  for (let i = 1; i <= count; i++) {
    const next = backend.add(x, one);
    x.dispose();
    x = next;
    if (i % (count / 10) !== 0) continue;
    const values = [...(await x.data())];
    const expected = [1 + i, 2 - i, 3 + i, 4 - i];
    if (values.join() !== expected.join()) throw new Error(`after ${i}: ${values}, expected ${expected}`);
    reports.push(backend.poolReport());
  }
  backend.dispose();
  return reports;
}

const errorOf = async (body: () => unknown): Promise<string> => {
  try {
    await body();
    return "nothing";
  } catch (error) {
    return error instanceof DeviceError ? `DeviceError: ${error.message}` : String(error);
  }
};

/** A device that is lost while operations wait: what they throw, and whether a new backend goes on. */
export async function lostDevice(): Promise<{
  reading: string;
  calling: string;
  timing: string;
  after: number[];
}> {
  const { device } = await watchedDevice({ tier: "plain", limits: "adapter" });
  const backend = new WebGpuBackend(device);
  const x = backend.tensor([1, 2], [2]);
  const y = backend.add(x, x);
  const pending = errorOf(() => y.data());
  device.destroy();
  const reading = await pending;
  const calling = await errorOf(() => backend.add(x, x));
  const timing = await errorOf(() => backend.time(() => undefined));
  for (const tensor of [x, y]) tensor.dispose();
  backend.dispose();
  const next = await openWebGpu({ tier: "plain" });
  const a = next.tensor([20, 1], [2]);
  const after = [...(await next.add(a, a).data())];
  next.dispose();
  return { reading, calling, timing, after };
}

/** Two backends on one device, used in turns; one closes, one runs out of memory; the other goes on. */
export async function twoBackends(): Promise<{ results: number[][]; failure: string; complaints: string[] }> {
  const { device, complaints } = await watchedDevice({ tier: "plain", limits: "default" });
  const [one, two] = [new WebGpuBackend(device), new WebGpuBackend(device)];
  const results: number[][] = [];
  const [x, y] = [one.tensor([1, 2, 3], [3]), two.tensor([10, 20, 30], [3])];
  for (let i = 0; i < 3; i++) {
    const [a, b] = [one.add(x, x), two.add(y, y)];
    results.push([...(await b.data())], [...(await a.data())]);
  }
  const failure = await errorOf(() => one.zeros([2 ** 28]));
  one.dispose();
  results.push([...(await two.add(y, y).data())]);
  two.dispose();
  return { results, failure, complaints };
}

/** Training of the model `tiny`: its losses on WebGPU and on the CPU, from the same weights and data. */
export async function training({
  seed,
  steps,
}: {
  seed: number;
  steps: number;
}): Promise<{ webgpu: number[]; cpu: number[] }> {
  const backend = await openWebGpu({ tier: "plain" });
  const losses = {
    webgpu: await lossesOf(backend, seed, steps),
    cpu: await lossesOf(new ReferenceBackend(), seed, steps),
  };
  backend.dispose();
  return losses;
}

/** Lengths of the packed sequences of a step. */
const LENGTHS = [96, 32];

/*
 * The schedule is one under which rounding stays small: from parameters 2e-7 apart the CPU parts from itself by less than 0.001 %
 * in 200 steps. Without warm-up, where AdamW's first step is the gradient's sign, it can part by more than 1 %.
 */
async function lossesOf(backend: Backend, seed: number, steps: number): Promise<number[]> {
  const trainer = new Trainer(Transformer.initialize(backend, PRESETS.tiny, { seed }), {
    steps,
    learningRate: 0.001,
    warmupSteps: 20,
    weightDecay: 0.1,
    clipNorm: 1,
  });
  const losses: number[] = [];
  for (let step = 0; step < steps; step++) losses.push((await trainer.train([textBatch(seed + step)])).loss);
  return losses;
}

/** Random digits in words: their spelling is to be learned, their order cannot be. */
function textBatch(seed: number): PackedTokens {
  const words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
  const size = LENGTHS.reduce((a, b) => a + b) + 1;
  let text = "";
  for (let state = seed; text.length < size; ) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    text += `${words[Math.floor((state / 2 ** 32) * 10)]} `;
  }
  const bytes = Int32Array.from(text.slice(0, size), (letter) => letter.charCodeAt(0));
  return {
    tokens: bytes.slice(0, -1),
    targets: bytes.slice(1),
    cuSeqlens: Int32Array.of(0, LENGTHS[0], size - 1),
  };
}

/** Problems that have to be cut: small workspace (waves), split keys, more choices than fit. Differences from the CPU. */
export async function cutProblems({ seed }: { seed: number }): Promise<Record<string, number>> {
  let state = seed;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
  const cpu = new ReferenceBackend();
  const differences: Record<string, number> = {};
  const compare = async (
    name: string,
    gpu: Backend,
    shapes: readonly (readonly number[])[],
    run: (backend: Backend, tensors: Tensor[]) => Tensor[],
  ) => {
    const data = shapes.map((shape) =>
      Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, random),
    );
    const results = await Promise.all(
      [gpu, cpu].map(async (backend) => {
        const tensors = data.map((values, i) => backend.tensor(values, shapes[i]));
        return Promise.all(run(backend, tensors).map((tensor) => tensor.values()));
      }),
    );
    let [difference, norm] = [0, 0];
    results[0].forEach((values, i) => {
      values.forEach((x, j) => {
        difference += (x - results[1][i][j]) ** 2;
        norm += results[1][i][j] ** 2;
      });
    });
    differences[name] = Math.sqrt(difference / norm);
  };

  const small = new WebGpuBackend(await openDevice({ tier: "plain" }), {
    tier: "plain",
    maxWorkspaceBytes: 40_000,
  });
  const [T, H, d] = [200, 4, 16];
  await compare(
    "waves",
    small,
    [
      [T, H, d],
      [T, 2, d],
      [T, 2, d],
      [T, H, d],
    ],
    (backend, [q, k, v, dOut]) => {
      const { out, lse, routing } = backend.moba(q, k, v, {
        blockSize: 8,
        topK: 5,
        cuSeqlens: [0, 130, 200],
      });
      const { dq, dk, dv } = backend.attendBackward(dOut, q, k, v, out, lse, routing);
      return [out, lse, dq, dk, dv];
    },
  );
  await compare(
    "split keys",
    small,
    [
      [3, H, d],
      [3000, 2, d],
      [3000, 2, d],
    ],
    (backend, [q, k, v]) => {
      const options = { cuSeqlens: [0, 1, 3], cuSeqlensK: [0, 1100, 3000] };
      const { out, lse } = backend.attention(q, k, v, options);
      return [out, lse];
    },
  );
  await compare(
    "many choices",
    small,
    [
      [300, 2, d],
      [300, 1, d],
      [300, 1, d],
    ],
    (backend, [q, k, v]) => {
      const { out, lse } = backend.moba(q, k, v, { blockSize: 2, topK: 60 });
      return [out, lse];
    },
  );
  small.dispose();

  const device = await openDevice({ tier: "plain" });
  Object.defineProperty(device, "limits", {
    value: { ...copyOf(device.limits), maxStorageBufferBindingSize: 2 ** 17 },
  });
  const narrow = new WebGpuBackend(device);
  await compare("elements beyond a binding", narrow, [[70_001], [70_001]], (backend, [x, y]) => {
    const sum = backend.add(x, y);
    return [sum, backend.swiglu(sum, x), backend.cast(backend.cast(y, "bf16"), "f32")];
  });
  await compare(
    "rows beyond a binding",
    narrow,
    [[700, 60], [60], [60, 40], [700, 15]],
    (backend, [x, weight, b, a]) => {
      const targets = backend.tensor(
        Int32Array.from({ length: 700 }, (_, i) => (i * 7) % 60),
        [700],
        "i32",
      );
      const { loss, lse } = backend.crossEntropy(x, targets);
      const dLogits = backend.crossEntropyBackward(loss, x, targets, lse);
      const turned = backend.rope(x.reshape([700, 3, 20]), targets);
      const products = [
        backend.matmul(x, b),
        backend.matmul(a.reshape([15, 700]), b.reshape([15, 160]), { transposeA: true }),
      ];
      return [backend.rmsNorm(x, weight), loss, lse, dLogits, turned, ...products];
    },
  );
  narrow.dispose();
  return differences;
}

/** Compiling ahead: what progress says, and how long the first real call takes after it, as pipelines made since. */
export async function compiling(): Promise<{ progress: [number, number][]; made: number; value: number }> {
  const { device } = await watchedDevice({ tier: "plain", limits: "adapter" });
  let made = 0;
  const create = device.createComputePipeline.bind(device);
  device.createComputePipeline = (descriptor) => {
    made += 1;
    return create(descriptor);
  };
  const backend = new WebGpuBackend(device);
  const x = backend.tensor([1, 2, 3, 4], [4, 1]);
  const run = () => backend.matmul(x, x, { transposeA: true });
  const progress: [number, number][] = [];
  await backend.compileAsync(
    () => backend.scope(() => void run()),
    (done, total) => progress.push([done, total]),
  );
  const [value] = await run().data();
  return { progress, made, value };
}

/** Device time of an operation, and the same of nothing. */
export async function timing(): Promise<{ something: number; nothing: number }> {
  const backend = await openWebGpu({ tier: "plain" });
  const a = backend.zeros([256, 256]);
  const multiply = () => backend.scope(() => void backend.matmul(a, a));
  await backend.time(multiply);
  const result = { something: await backend.time(multiply), nothing: await backend.time(() => undefined) };
  backend.dispose();
  return result;
}

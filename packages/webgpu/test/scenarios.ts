/// <reference types="@webgpu/types" />
import { type ConformanceOptions, type ConformanceReport, runConformance } from "@moba-js/conformance";
import { type PackedTokens, PRESETS, Trainer, Transformer } from "@moba-js/model";
import { ReferenceBackend } from "@moba-js/reference";
import { type Backend, DeviceError, type Tensor } from "@moba-js/tensor";
import { openDevice, openWebGpu, type PoolReport, type Tier, WebGpuBackend } from "../src/index.js";
import { emulateF16, emulateWide, WIDE_ADAPTER_INFO } from "./emulation.js";

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

/** Dawn's null device, which has every feature and computes nothing. */
async function nullDevice(): Promise<GPUDevice> {
  const name: string = "webgpu";
  const gpu: GPU = (await import(name)).create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]);
  keptAlive.push(gpu);
  const adapter = (await gpu.requestAdapter()) as GPUAdapter;
  return adapter.requestDevice({
    requiredFeatures: [
      "subgroups",
      "shader-f16",
      "chromium-experimental-subgroup-matrix",
    ] as GPUFeatureName[],
  });
}

const pretend = (device: GPUDevice, info: object): void =>
  void Object.defineProperty(device, "adapterInfo", { value: info });

/** The tiers that devices get by themselves, and what is said where one is asked for by name that is not there. */
export async function tierChoice(): Promise<{ tiers: Record<string, Tier>; refusals: string[] }> {
  const [bare, full, other, wide] = [
    await defaultDevice(),
    ...(await Promise.all([1, 2, 3].map(nullDevice))),
  ];
  const [config] = WIDE_ADAPTER_INFO.subgroupMatrixConfigs;
  pretend(other, { ...WIDE_ADAPTER_INFO, subgroupMatrixConfigs: [{ ...config, M: 8 }] });
  pretend(wide, WIDE_ADAPTER_INFO);
  const tiers = Object.fromEntries(
    Object.entries({ bare, full, other, wide }).map(([name, device]) => [
      name,
      new WebGpuBackend(device).tier,
    ]),
  );
  const dawnOptions = ["backend=null", "enable-dawn-features=allow_unsafe_apis"];
  const refusals = [
    await errorOf(() => new WebGpuBackend(bare, { tier: "subgroups" })),
    await errorOf(() => new WebGpuBackend(full, { tier: "subgroup-matrix" })),
    await errorOf(() => openWebGpu({ tier: "subgroup-matrix", dawnOptions })),
  ];
  return { tiers, refusals };
}

/**
 * Compiles what f16 attention needs in the highest tiers on a device that computes nothing. Says which kernels were compiled, and what the
 * compiler complained of.
 */
export async function compilingExperimental({
  tier,
}: {
  tier: Tier;
}): Promise<{ kernels: string[]; complaints: string[] }> {
  const device = await nullDevice();
  pretend(device, WIDE_ADAPTER_INFO);
  const { complaints, kernels } = watch(device);
  const create = device.createComputePipelineAsync.bind(device);
  device.createComputePipelineAsync = (descriptor) =>
    create(descriptor).catch((error) => {
      // Its own subgroups may have 128 threads, so it refuses workgroups of fewer, which those of 32 allow.
      if (!`${error}`.includes("must be a multiple of the device maxSubgroupSize"))
        complaints.push(`${error}`);
      return undefined as never;
    });
  const backend = new WebGpuBackend(device, { tier });
  const tensor = () => backend.zeros([256, 2, 16], "f16");
  await backend.compileAsync(() =>
    backend.scope(() => {
      const [q, k, v, dOut] = [tensor(), tensor(), tensor(), tensor()];
      const { out, lse, routing } = backend.moba(q, k, v, { blockSize: 32, topK: 2 });
      backend.attendBackward(dOut, q, k, v, out, lse, routing);
      backend.attention(q, k, v);
      backend.matmul(q.reshape([256, 32]), k.reshape([256, 32]), { transposeB: true });
      backend.cast(backend.swiglu(q, k), "f32");
    }),
  );
  return { kernels, complaints };
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

/**
 * The values of tensors that are made where a result that nobody reads was freed, its kernel still waiting: first and last, for
 * each length. Each should be 7.
 */
export async function reusedBuffers({
  lengths,
}: {
  lengths: readonly number[];
}): Promise<{ values: number[][]; buffersMade: number[] }> {
  const backend = await openWebGpu({ tier: "plain" });
  const values: number[][] = [];
  const buffersMade: number[] = [];
  for (const length of lengths) {
    const x = backend.tensor(new Float32Array(length).fill(1), [length]);
    await x.data();
    backend.add(x, x).dispose();
    const before = backend.poolReport().buffersMade;
    const sevens = backend.tensor(new Float32Array(length).fill(7), [length]);
    buffersMade.push(backend.poolReport().buffersMade - before);
    const data = await sevens.data();
    values.push([data[0], data[length - 1]]);
    for (const tensor of [x, sevens]) tensor.dispose();
  }
  backend.dispose();
  return { values, buffersMade };
}

/**
 * Buffers made in each of some rounds that need a large and a middling one after the other, when small ones of before fill most of what
 * is kept.
 */
export async function buffersOfRounds({ rounds }: { rounds: number }): Promise<number[]> {
  const KiB = 1024;
  const backend = await openWebGpu({ tier: "plain", maxKeptBytes: 1024 * KiB });
  const zeros = (bytes: number) => backend.zeros([bytes / 4]);
  const small = Array.from({ length: 10 }, () => zeros(64 * KiB));
  for (const tensor of small) tensor.dispose();
  const made: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const before = backend.poolReport().buffersMade;
    for (const bytes of [512 * KiB, 96 * KiB]) zeros(bytes).dispose();
    made.push(backend.poolReport().buffersMade - before);
  }
  backend.dispose();
  return made;
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

type Compare = (
  name: string,
  gpu: Backend,
  shapes: readonly (readonly number[])[],
  run: (backend: Backend, tensors: Tensor[]) => Tensor[],
) => Promise<void>;

/** Runs operations on a backend and on the CPU, with the same random inputs, and notes the relative difference. */
function comparing(seed: number): { compare: Compare; differences: Record<string, number> } {
  let state = seed;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
  const cpu = new ReferenceBackend();
  const differences: Record<string, number> = {};
  const compare: Compare = async (name, gpu, shapes, run) => {
    const data = shapes.map((shape) =>
      Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, random),
    );
    const results = await Promise.all(
      [gpu, cpu].map(async (backend) => {
        const tensors = data.map((values, i) => backend.tensor(values, shapes[i]));
        return Promise.all(run(backend, tensors).map((tensor) => tensor.values()));
      }),
    );
    results[0].forEach((values, i) => {
      let [difference, norm] = [0, 0];
      values.forEach((x, j) => {
        difference += (x - results[1][i][j]) ** 2;
        norm += results[1][i][j] ** 2;
      });
      const relative = Math.sqrt(difference / norm);
      differences[name] = Math.max(differences[name] ?? 0, Number.isNaN(relative) ? Infinity : relative);
    });
  };
  return { compare, differences };
}

/** Problems that have to be cut: small workspace (waves), split keys, more choices than fit, many blocks. Differences from the CPU. */
export async function cutProblems({ seed }: { seed: number }): Promise<Record<string, number>> {
  const { compare, differences } = comparing(seed);
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
  // More blocks than are counted at a time, and rows of which fewer than 32 are ranked at a time.
  const plain = await openWebGpu({ tier: "plain" });
  const [blocks, choices] = [2200, 70];
  const shape = [blocks, 1, 4];
  await compare("many blocks", plain, [shape, shape, shape, shape], (backend, [q, k, v, dOut]) => {
    const chosen = Int32Array.from({ length: blocks * choices }, (_, i) => {
      const [row, slot] = [Math.floor(i / choices), i % choices];
      return (row + slot) % 5 === 0 ? -1 : (37 * row + 29 * slot) % blocks;
    });
    const routing = backend.createRouting(chosen, [blocks, 1, choices], { blockSize: 1, causal: false });
    const { out, lse } = backend.attend(q, k, v, routing);
    const { dq, dk, dv } = backend.attendBackward(dOut, q, k, v, out, lse, routing);
    return [out, lse, dq, dk, dv];
  });
  plain.dispose();
  return differences;
}

/**
 * Every operation on tensors that are larger than can be bound, and launches larger than one dimension of the grid. WebGPU opens no
 * device with lower limits than the default ones, so the backend is told of lower ones, and refuses to bind more itself.
 */
export async function narrowProblems({ seed }: { seed: number }): Promise<Record<string, number>> {
  const { compare, differences } = comparing(seed);
  const { device, complaints } = await watchedDevice({ tier: "plain", limits: "adapter" });
  const lower = { maxStorageBufferBindingSize: 2 ** 15, maxComputeWorkgroupsPerDimension: 5 };
  Object.defineProperty(device, "limits", { value: { ...copyOf(device.limits), ...lower } });
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
  const [T, H, d] = [300, 4, 16];
  const attentionShapes = [
    [T, H, d],
    [T, 2, d],
    [T, 2, d],
    [T, H, d],
  ];
  const packed = { cuSeqlens: [0, 60, 60, T] };
  await compare("attention", narrow, attentionShapes, (backend, [q, k, v, dOut]) => {
    const { out, lse } = backend.attention(q, k, v, packed);
    const { dq, dk, dv } = backend.attentionBackward(dOut, q, k, v, out, lse, packed);
    const all = backend.attention(q, k, v, { causal: false });
    return [out, lse, dq, dk, dv, all.out];
  });
  for (const window of [10, 200]) {
    await compare(`window ${window}`, narrow, attentionShapes, (backend, [q, k, v, dOut]) => {
      const options = { ...packed, window };
      const { out, lse } = backend.windowAttention(q, k, v, options);
      const { dq, dk, dv } = backend.windowAttentionBackward(dOut, q, k, v, out, lse, options);
      return [out, lse, dq, dk, dv];
    });
  }
  await compare("moba", narrow, attentionShapes, (backend, [q, k, v, dOut]) => {
    const { out, lse, routing } = backend.moba(q, k, v, { blockSize: 16, topK: 4, ...packed });
    const { dq, dk, dv } = backend.attendBackward(dOut, q, k, v, out, lse, routing);
    return [out, lse, dq, dk, dv, backend.centroids(k, { blockSize: 1 })];
  });
  await compare("one block for all", narrow, attentionShapes, (backend, [q, k, v, dOut]) => {
    const indices = Int32Array.from({ length: T * H * 2 }, (_, i) => (i % 2 === 0 ? 0 : -1));
    const routing = backend.createRouting(indices, [T, H, 2], { blockSize: 10, causal: false });
    const { out, lse } = backend.attend(q, k, v, routing);
    const { dq, dk, dv } = backend.attendBackward(dOut, q, k, v, out, lse, routing);
    return [out, lse, dq, dk, dv];
  });
  const wide = [
    [T, 2, 32],
    [T, 2, 32],
    [T, 2, 32],
  ];
  await compare("many centroids", narrow, wide, (backend, [q, k, v]) => [
    backend.moba(q, k, v, { blockSize: 2, topK: 5 }).out,
  ]);
  await compare(
    "decoding",
    narrow,
    [
      [2, H, d],
      [900, 2, d],
      [900, 2, d],
      [70, 2, d],
    ],
    (backend, [q, k, v, centroids]) => {
      const options = { cuSeqlens: [0, 1, 2], cuSeqlensK: [0, 250, 900] };
      const { out, lse } = backend.attention(q, k, v, options);
      const [target, source] = [k, v].map((x) => backend.cast(x, "bf16"));
      backend.copyRows(target, source.reshape([900, 2, d]), { cuSeqlens: [0, 900], offsets: [0] });
      backend.updateCentroids(centroids, k, {
        ...{ cuSeqlens: [0, 400, 900], offsets: [100, 7], cuCentroids: [0, 32, 70], blockSize: 16 },
      });
      return [out, lse, backend.cast(target, "f32"), centroids];
    },
  );
  await compare(
    "key convolution",
    narrow,
    [
      [701, 3, 15],
      [4, 3, 15],
      [701, 3, 15],
      [3, 3, 3, 15],
    ],
    (backend, [k, weights, dOut, history]) => {
      const options = { cuSeqlens: [0, 2, 300, 701] };
      const { dk, dWeights } = backend.keyConvBackward(dOut, k, weights, options);
      const past = { ...options, history: backend.cast(history, "bf16") };
      const next = backend.keyConvHistory(backend.cast(k, "bf16"), 4, past);
      const out = backend.keyConv(k, weights, { ...options, history });
      return [dk, dWeights, out, backend.cast(next, "f32")];
    },
  );
  await compare(
    "products",
    narrow,
    [
      [130, 150],
      [150, 140],
      [130, 150],
      [150, 140],
    ],
    (backend, [a, b, c, e]) => {
      const [turnedA, turnedB] = [c.reshape([150, 130]), e.reshape([140, 150])];
      return [
        backend.matmul(a, b),
        backend.matmul(turnedA, b, { transposeA: true }),
        backend.matmul(a, turnedB, { transposeB: true }),
        backend.matmul(turnedA, turnedB, { transposeA: true, transposeB: true }),
      ];
    },
  );
  await compare(
    "rows that are looked up",
    narrow,
    [[900, 33], [901, 33], [33]],
    (backend, [table, x, weight]) => {
      const places = Int32Array.from({ length: 901 }, (_, i) => (i * 677) % 900);
      const indices = backend.tensor(places, [901], "i32");
      const rows = backend.embedding(backend.cast(table, "bf16"), indices);
      const { dx, dWeight } = backend.rmsNormBackward(x, x, weight);
      const sums = [backend.sum(x), backend.sumSquares(x)];
      return [backend.cast(rows, "f32"), backend.embeddingBackward(x, indices, 900), dx, dWeight, ...sums];
    },
  );
  narrow.dispose();
  for (const complaint of complaints) differences[complaint] = Infinity;
  return differences;
}

/**
 * The tier `shader-f16`, or if `wide` the last one, on a device that has it not, its kernels rewritten: attention in f16 and its gradients,
 * against the CPU, and if `wide` a part of the conformance suite. Says which kernels ran.
 */
export async function emulated({ seed, wide }: { seed: number; wide: boolean }): Promise<{
  tier: Tier;
  differences: Record<string, number>;
  kernels: string[];
  report: ConformanceReport | undefined;
}> {
  const { compare, differences } = comparing(seed);
  const { device, complaints } = await watchedDevice({ tier: "subgroups", limits: "adapter" });
  Object.defineProperty(device, "features", { value: { has: () => true } });
  if (wide) pretend(device, WIDE_ADAPTER_INFO);
  const kernels: string[] = [];
  const create = device.createShaderModule.bind(device);
  device.createShaderModule = ({ label = "", code }) => {
    kernels.push(label);
    return create({ label, code: wide ? emulateWide(emulateF16(code), label) : emulateF16(code) });
  };
  const backend = new WebGpuBackend(device);
  const cuSeqlens = [0, 60, 150];
  const [T, d] = [150, wide ? 64 : 16];
  const shapes = [
    [T, 4, d],
    [T, 2, d],
    [T, 2, d],
    [T, 4, d],
  ];
  const inF16 = (each: Backend, tensors: Tensor[]) => tensors.map((tensor) => each.cast(tensor, "f16"));
  const inF32 = (each: Backend, tensors: Tensor[]) => tensors.map((tensor) => each.cast(tensor, "f32"));
  await compare("routed attention", backend, shapes, (each, tensors) => {
    const [q, k, v, dOut] = inF16(each, tensors);
    const { out, lse, routing } = each.moba(q, k, v, { blockSize: 40, topK: 3, cuSeqlens });
    const { dq, dk, dv } = each.attendBackward(dOut, q, k, v, out, lse, routing);
    return inF32(each, [out, lse, dq, dk, dv]);
  });
  await compare("attention", backend, shapes, (each, tensors) => {
    const [q, k, v, dOut] = inF16(each, tensors);
    const { out, lse } = each.attention(q, k, v, { cuSeqlens });
    const { dq, dk, dv } = each.attentionBackward(dOut, q, k, v, out, lse, { cuSeqlens });
    return inF32(each, [out, lse, dq, dk, dv]);
  });
  const options: ConformanceOptions = { seed, dtypes: ["f16"], only: ["attend", "route", "nonFinite"] };
  const report = wide ? await runConformance(backend, options) : undefined;
  const { tier } = backend;
  backend.dispose();
  for (const complaint of complaints) differences[complaint] = Infinity;
  return { tier, differences, kernels, report };
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

// 100 000 mixed calls of random small shapes from 4 threads, with nothing but Node and what is built:
// `node tools/soak.mjs [calls] [seed]`. Passes when no call fails and memory, the device's and the process's, stays flat.
import { randomInt } from "node:crypto";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { openCuda } from "../dist/index.js";

const THREADS = 4;
const REPORTS = 10;
/** Calls of the largest shapes, before all others: what those need at once is then there, if it is given back. */
const WARMING = 1000;
const SLACK = { device: 2 ** 20, process: 2 ** 26 };

/** Uniform integers from a seed (mulberry32). */
function generator(seed) {
  let state = seed;
  const next = () => {
    state = (state + 0x6d2b79f5) | 0;
    let x = Math.imul(state ^ (state >>> 15), 1 | state);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    value: () => 2 * next() - 1,
    integer: (low, high) => low + Math.floor(next() * (high - low + 1)),
    oneOf: (items) => items[Math.floor(next() * items.length)],
  };
}

/** A random shape of q. */
const anyShape = (random) => ({
  dtype: random.oneOf(["f32", "f16", "bf16"]),
  tokens: random.integer(0, 200),
  kvHeads: random.integer(1, 3),
  group: random.integer(1, 2),
  headDim: random.oneOf([1, 32, 40, 64, 128]),
});
/** The largest, in any dtype: these take other kernels. */
const largestShape = (random) => ({ ...anyShape(random), tokens: 200, kvHeads: 3, group: 2, headDim: 128 });

/** One random call; its tensors are gone afterwards, but for what it returns. */
function call(cuda, random, { dtype, tokens, kvHeads, group, headDim }) {
  const heads = kvHeads * group;
  const make = (...shape) => {
    const data = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, random.value);
    return cuda.tensor(data, shape, dtype);
  };
  const [q, k, v] = [
    make(tokens, heads, headDim),
    make(tokens, kvHeads, headDim),
    make(tokens, kvHeads, headDim),
  ];
  const cut = random.integer(0, tokens);
  const cuSeqlens = random.oneOf([undefined, [0, cut, tokens]]);
  const packed = cuSeqlens ? { cuSeqlens } : {};
  const [blockSize, topK, causal] = [
    random.integer(1, 64),
    random.integer(1, 9),
    random.oneOf([true, false]),
  ];
  const operation = random.oneOf(["moba", "attention", "windowAttention", "centroids", "keyConv", "decode"]);
  switch (operation) {
    case "moba":
      return cuda.moba(q, k, v, { ...packed, blockSize, topK, causal }).out;
    case "attention":
      return cuda.attention(q, k, v, { ...packed, causal }).out;
    case "windowAttention":
      return cuda.windowAttention(q, k, v, { ...packed, window: random.integer(1, 100) }).out;
    case "centroids":
      return cuda.centroids(k, { ...packed, blockSize });
    case "keyConv":
      return cuda.keyConv(k, make(random.integer(1, 5), kvHeads, headDim), packed);
    case "decode": {
      const cache = cuda.zeros([tokens + 100, kvHeads, headDim], dtype);
      cuda.copyRows(cache, k, { offsets: [random.integer(0, 100)] });
      const centroids = cuda.zeros([Math.ceil(tokens / blockSize), kvHeads, headDim]);
      cuda.updateCentroids(centroids, k, {
        blockSize,
        offsets: [0],
        cuCentroids: [0, Math.ceil(tokens / blockSize)],
      });
      return cuda.routeCentroids(q, centroids, { blockSize, topK }).indices;
    }
  }
}

async function work({ calls, seed }) {
  const cuda = await openCuda();
  const random = generator(seed);
  for (let i = 0; i < WARMING; i++) cuda.scope(() => call(cuda, random, largestShape(random))).dispose();
  for (let i = 1; i <= calls; i++) {
    const result = cuda.scope(() => call(cuda, random, anyShape(random)));
    if (i % 20 === 0) {
      const values = await result.values();
      if (!values.every(Number.isFinite)) throw new Error(`call ${i}: a result is not finite`);
    }
    result.dispose();
    if (i % Math.floor(calls / REPORTS) === 0) {
      const { usedBytes, cachedBytes } = cuda.deviceMemory();
      parentPort.postMessage({ report: i / Math.floor(calls / REPORTS), bytes: usedBytes + cachedBytes });
    }
  }
  if (cuda.memory().tensors > 0) throw new Error(`${cuda.memory().tensors} tensors are left`);
  cuda.dispose();
}

async function main() {
  const calls = Number(process.argv[2] ?? 100_000);
  const seed = Number(process.argv[3] ?? randomInt(2 ** 31));
  console.log(`${calls} calls from ${THREADS} threads, seed ${seed}`);
  const held = Array.from({ length: REPORTS + 1 }, () => ({ device: 0, process: 0 }));
  const run = (thread) =>
    new Promise((done, failed) => {
      const workerData = { calls: Math.ceil(calls / THREADS), seed: seed + thread };
      const worker = new Worker(new URL(import.meta.url), { workerData });
      worker.on("error", failed);
      worker.on("exit", (code) =>
        code === 0 ? done() : failed(new Error(`thread ${thread} ended with ${code}`)),
      );
      worker.on("message", ({ report, bytes }) => {
        if (report > REPORTS) return;
        held[report].device += bytes;
        held[report].process = Math.max(held[report].process, process.memoryUsage().rss);
      });
    });
  await Promise.all(Array.from({ length: THREADS }, (_, thread) => run(thread)));
  const mib = (bytes) => (bytes / 2 ** 20).toFixed(1);
  for (let i = 1; i <= REPORTS; i++) {
    console.log(
      `${(100 * i) / REPORTS} %: device ${mib(held[i].device)} MiB, process ${mib(held[i].process)} MiB`,
    );
  }
  const grown = ["device", "process"].filter(
    (where) => held[REPORTS][where] > 1.1 * held[1][where] + SLACK[where],
  );
  for (const where of grown) console.log(`✗ memory of the ${where} grew`);
  console.log(`${2 - grown.length} passed, ${grown.length} failed`);
  process.exitCode = grown.length === 0 ? 0 : 1;
}

await (isMainThread ? main() : work(workerData));

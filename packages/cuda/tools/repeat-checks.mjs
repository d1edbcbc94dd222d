// Checks that attention and its gradients are the same bits whenever they run, with nothing but Node and what is built:
// `node tools/repeat-checks.mjs [runs, 20 when not given]`. Ends with "N passed, N failed". Worth running beside other work on
// the device too: it changes which CTA comes first.
import { randomInt } from "node:crypto";
import { cudaDevices, openCuda } from "../dist/index.js";

/** Sequences of these lengths, packed; `path` as of `openCuda`, the device's best where there is none. */
const cases = [
  { lengths: [65536], heads: 16, kvHeads: 16, headDim: 128, blockSize: 128, topK: 8, dtype: "bf16" },
  { lengths: [8192, 8192], heads: 16, kvHeads: 16, headDim: 64, blockSize: 128, topK: 8, dtype: "bf16" },
  { lengths: [30000, 1, 2767], heads: 8, kvHeads: 2, headDim: 128, blockSize: 64, topK: 16, dtype: "f16" },
  { lengths: [20000], heads: 4, kvHeads: 4, headDim: 64, blockSize: 512, topK: 3, dtype: "bf16" },
  { lengths: [3000, 77], heads: 4, kvHeads: 2, headDim: 40, blockSize: 100, topK: 5, dtype: "f32" },
  {
    lengths: [16384],
    heads: 8,
    kvHeads: 4,
    headDim: 128,
    blockSize: 128,
    topK: 8,
    dtype: "bf16",
    path: "sm80",
  },
  {
    lengths: [16384],
    heads: 8,
    kvHeads: 8,
    headDim: 64,
    blockSize: 64,
    topK: 16,
    dtype: "f16",
    path: "sm80",
  },
];

/** Random numbers of magnitude 1/2 to 2 as they are stored, fast (xorshift). */
function randomNumbers(length, dtype) {
  const numbers = dtype === "f32" ? new Float32Array(length) : new Uint16Array(length);
  const [kept, set] = dtype === "bf16" ? [0x80ff, 0x3f00] : [0x87ff, 0x3800];
  let state = randomInt(1, 2 ** 31);
  for (let i = 0; i < length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    numbers[i] = dtype === "f32" ? state / 2 ** 31 : (state & kept) | set;
  }
  return numbers;
}

const bytesOf = ({ buffer, byteOffset, byteLength }) => Buffer.from(buffer, byteOffset, byteLength);

/** Runs forward and backward so many times, and once captured. @returns the runs that gave other bits than the first */
async function compare(cuda, { lengths, heads, kvHeads, headDim, blockSize, topK, dtype }, runs) {
  const cuSeqlens = [0, ...lengths.map((_, i) => lengths.slice(0, i + 1).reduce((a, b) => a + b))];
  const tokens = cuSeqlens[lengths.length];
  const rows = (count) =>
    cuda.tensor(randomNumbers(tokens * count * headDim, dtype), [tokens, count, headDim], dtype);
  const [q, k, v, dOut] = [rows(heads), rows(kvHeads), rows(kvHeads), rows(heads)];
  const run = () => {
    const { out, lse, routing } = cuda.moba(q, k, v, { cuSeqlens, blockSize, topK });
    return { out, lse, indices: routing.indices, ...cuda.attendBackward(dOut, q, k, v, out, lse, routing) };
  };
  const wanted = new Map();
  const differing = [];
  const check = async (label, results) => {
    for (const [name, tensor] of Object.entries(results)) {
      const bytes = bytesOf(await tensor.data());
      if (!wanted.has(name)) wanted.set(name, bytes);
      else if (!bytes.equals(wanted.get(name))) differing.push(`${name} of ${label}`);
      tensor.dispose();
    }
  };
  for (let i = 1; i <= runs; i++) await check(`run ${i}`, run());
  let captured;
  const graph = cuda.capture(() => {
    captured = run();
  });
  graph.replay();
  await check("the captured run", captured);
  graph.dispose();
  for (const tensor of [q, k, v, dOut]) tensor.dispose();
  return differing;
}

const runs = Number(process.argv[2] ?? 20);
const devices = cudaDevices();
console.log(`${devices.length} device(s), the first: ${devices[0]?.name}`);
let failed = 0;
for (const { path, ...shape } of cases) {
  const start = performance.now();
  const cuda = await openCuda(path ? { path } : {});
  const differing = await compare(cuda, shape, runs);
  cuda.dispose();
  if (differing.length > 0) failed += 1;
  const { lengths, heads, kvHeads, headDim, blockSize, topK, dtype } = shape;
  const text = `${lengths.join(" + ")} tokens, ${heads}/${kvHeads} heads of ${headDim}, B = ${blockSize}, k = ${topK}, ${dtype}`;
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  console.log(
    `${differing.length === 0 ? "✓" : "✗"} ${text}${path ? `, ${path}` : ""}: ${runs} runs and a captured one (${seconds} s)`,
  );
  for (const difference of differing) console.log(`    other bits: ${difference}`);
}
console.log(`${cases.length - failed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;

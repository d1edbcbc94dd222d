// A small set of calls that launches every attention kernel, for compute-sanitizer and with nothing but Node and what is built:
//   compute-sanitizer --tool memcheck|racecheck|synccheck --target-processes all node tools/sanitizer-set.mjs [path]
// `path` is "sm90", "sm80" or "plain"; the device's best when not given. Ends with "done" when all results are finite.
import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import { PRESETS, Trainer, Transformer } from "../../model/dist/index.js";
import { openCuda } from "../dist/index.js";

const path = process.argv[2];
const cuda = await openCuda(path ? { path } : {});
const seed = randomInt(2 ** 31);
console.log(`${cuda.device}, seed ${seed}`);

const random = () => 2 * Math.random() - 1;
const tensor = (shape, dtype) => {
  const data = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, random);
  return cuda.tensor(data, shape, dtype);
};

/** Reads what was computed: the sanitizer sees memory, this sees that there was something to compute. */
async function finite(tensors) {
  for (const value of Object.values(tensors)) {
    if (value.values) assert.ok((await value.values()).every(Number.isFinite));
  }
}

const problems = [
  { tokens: 700, heads: 4, kvHeads: 2, headDim: 128, blockSize: 64, topK: 3, dtype: "bf16" },
  { tokens: 530, heads: 2, kvHeads: 2, headDim: 64, blockSize: 128, topK: 3, dtype: "f16" },
  { tokens: 300, heads: 2, kvHeads: 2, headDim: 128, blockSize: 128, topK: 2, dtype: "bf16" },
  { tokens: 300, heads: 2, kvHeads: 1, headDim: 64, blockSize: 128, topK: 2, dtype: "bf16" },
  { tokens: 500, heads: 2, kvHeads: 1, headDim: 64, blockSize: 4, topK: 6, dtype: "bf16" },
  { tokens: 150, heads: 2, kvHeads: 1, headDim: 40, blockSize: 16, topK: 4, dtype: "f32" },
];
for (const { tokens, heads, kvHeads, headDim, blockSize, topK, dtype } of problems) {
  const rows = (count) => tensor([tokens, count, headDim], dtype);
  const [q, k, v, dOut] = [rows(heads), rows(kvHeads), rows(kvHeads), rows(heads)];
  const packed = { cuSeqlens: [0, 101, tokens] };
  const weights = tensor([4, kvHeads, headDim], dtype);

  const routed = cuda.moba(q, k, v, { ...packed, blockSize, topK });
  await finite(routed);
  await finite(cuda.attendBackward(dOut, q, k, v, routed.out, routed.lse, routed.routing));

  const dense = cuda.attention(q, k, v, packed);
  await finite(dense);
  await finite(cuda.attentionBackward(dOut, q, k, v, dense.out, dense.lse, packed));

  const near = { ...packed, window: 70 };
  const sliding = cuda.windowAttention(q, k, v, near);
  await finite(sliding);
  await finite(cuda.windowAttentionBackward(dOut, q, k, v, sliding.out, sliding.lse, near));

  await finite([cuda.keyConv(k, weights, packed)]);
  await finite(cuda.keyConvBackward(v, k, weights, packed));

  const pageSize = 2 * blockSize;
  const cache = cuda.pagedCache({
    sequences: 2,
    pages: Math.ceil(tokens / pageSize) + 4,
    pageSize,
    blockSize,
    kvHeads,
    headDim,
    dtype,
  });
  cache.append(k, v, packed);
  const one = (count) => tensor([2, count, headDim], dtype);
  await finite(cache.decode(one(heads), one(kvHeads), one(kvHeads), { topK }));
}

// So many sequences that a CTA takes several blocks.
{
  const [sequences, tokens, blockSize, heads, kvHeads, headDim] = [60, 41, 4, 32, 8, 64];
  const pages = sequences * Math.ceil((tokens + 1) / blockSize);
  const cache = cuda.pagedCache({ sequences, pages, blockSize, kvHeads, headDim, dtype: "bf16" });
  const rows = (count, width) => tensor([sequences * count, width, headDim], "bf16");
  const cuSeqlens = Array.from({ length: sequences + 1 }, (_, s) => s * tokens);
  cache.append(rows(tokens, kvHeads), rows(tokens, kvHeads), { cuSeqlens });
  await finite(cache.decode(rows(1, heads), rows(1, kvHeads), rows(1, kvHeads), { topK: 8 }));
}

const model = Transformer.initialize(cuda, PRESETS.tiny, { seed, compute: "bf16" });
const trainer = new Trainer(model, {
  steps: 4,
  learningRate: 0.001,
  warmupSteps: 1,
  weightDecay: 0.1,
  clipNorm: 1,
});
const text = (length) => Int32Array.from({ length }, () => randomInt(200));
for (let step = 0; step < 3; step++) {
  const { loss } = await trainer.train([
    { tokens: text(200), targets: text(200), cuSeqlens: Int32Array.of(0, 70, 200) },
  ]);
  assert.ok(Number.isFinite(loss));
}
cuda.dispose();
console.log("done");

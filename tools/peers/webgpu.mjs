#!/usr/bin/env node
/*
 * Attention of @moba-js/webgpu beside onnxruntime's WebGPU flash attention, on the same device, in one table.
 *
 *   npm install --ignore-scripts --prefix PEER onnxruntime-node      (its installer would fetch CUDA libraries)
 *   node tools/peers/webgpu.mjs --peer PEER [--sizes 2048,16384] [--tier plain] [--dtype f32] [--repeats 7] [--json FILE]
 *
 * One sequence, causal, H = 16, d = 64, B = 128, k = 8, float32 unless told otherwise. onnxruntime runs a chain of
 * com.microsoft.MultiHeadAttention nodes, a long one against one of one node, so that transfers and calls cancel; moba-js runs as many
 * calls in one submission as the chains differ by. The two sides take turns, and times are medians over the turns, which are fewer where one
 * takes long; ratios are onnxruntime's time divided by moba-js's. Results of moba-js are checked on sampled rows, against a direct computation in
 * float64, before they are timed; how far onnxruntime's output is from that is shown.
 *
 * A GPU's clock wanders when nothing holds it. Before each case a fixed multiplication of matrices, the probe, runs until its times are
 * steady; it runs again in every turn, and the last column has its lowest and highest rate: where they differ much, so do the times.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { openWebGpu } from "../../packages/webgpu/dist/index.js";

const { values: options } = parseArgs({
  options: {
    peer: { type: "string" },
    sizes: { type: "string", default: "2048,4096,8192,16384,32768,65536" },
    "peer-most": { type: "string", default: "65536" },
    tier: { type: "string" },
    dtype: { type: "string", default: "f32" },
    heads: { type: "string", default: "16" },
    dim: { type: "string", default: "64" },
    block: { type: "string", default: "128" },
    topk: { type: "string", default: "8" },
    repeats: { type: "string", default: "7" },
    json: { type: "string" },
  },
});
const sizes = options.sizes.split(",").map(Number);
const [heads, dim, blockSize, topK, repeats] = ["heads", "dim", "block", "topk", "repeats"].map((name) =>
  Number(options[name]),
);
/** Nodes of the long chain: for few tokens many, so that they outweigh what differs from call to call. */
const chainOf = (tokens) => (tokens > 16384 ? 3 : 9);
/** Probes have to agree for so long, within this part, before a case begins; but it waits no longer than the last. */
const STEADY_MILLISECONDS = 300;
const STEADY = 0.03;
const MOST_MILLISECONDS = 5000;
/** Of a case whose turns take long there are fewer than asked for: none begins after so long, but for the first few. */
const MOST_TURN_MILLISECONDS = 6000;
const LEAST_TURNS = 3;
/** Dense backward is not measured for more tokens. */
const MOST_DENSE_BACKWARD = 16384;

// ---- the peer -----------------------------------------------------------------------------------------------------

/** A protobuf message from [field, value] pairs: integers, strings, nested messages. */
function message(fields) {
  const bytes = [];
  const varint = (value) => {
    let rest = value;
    for (; rest > 127; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 128);
    bytes.push(rest);
  };
  for (const [field, value] of fields) {
    if (typeof value === "number") {
      varint(field * 8);
      varint(value);
    } else {
      const content = typeof value === "string" ? new TextEncoder().encode(value) : value;
      varint(field * 8 + 2);
      varint(content.length);
      for (const byte of content) bytes.push(byte);
    }
  }
  return Uint8Array.from(bytes);
}

/** An ONNX model: `nodes` causal attentions, each one's output the next one's query. */
function chainModel(nodes, tokens) {
  const FLOAT = 1;
  const INT = 2;
  const shape = message([1, tokens, heads * dim].map((extent) => [1, message([[1, extent]])]));
  const type = message([
    [
      1,
      message([
        [1, FLOAT],
        [2, shape],
      ]),
    ],
  ]);
  const value = (name) =>
    message([
      [1, name],
      [2, type],
    ]);
  const attribute = (name, i) =>
    message([
      [1, name],
      [3, i],
      [20, INT],
    ]);
  const node = (i) =>
    message([
      [1, i === 0 ? "q" : `x${i}`],
      [1, "k"],
      [1, "v"],
      [2, i === nodes - 1 ? "out" : `x${i + 1}`],
      [4, "MultiHeadAttention"],
      [5, attribute("num_heads", heads)],
      [5, attribute("unidirectional", 1)],
      [7, "com.microsoft"],
    ]);
  const graph = message([
    ...Array.from({ length: nodes }, (_, i) => [1, node(i)]),
    [2, "chain"],
    ...["q", "k", "v"].map((name) => [11, value(name)]),
    [12, value("out")],
  ]);
  return message([
    [1, 10],
    [7, graph],
    [
      8,
      message([
        [1, ""],
        [2, 21],
      ]),
    ],
    [
      8,
      message([
        [1, "com.microsoft"],
        [2, 1],
      ]),
    ],
  ]);
}

/** onnxruntime's attention: its output, and milliseconds of the long chain less those of the short one, a node. */
async function openPeer(ort, tokens, { q, k, v }) {
  const tensor = (data) => new ort.Tensor("float32", data, [1, tokens, heads * dim]);
  const feeds = { q: tensor(q), k: tensor(k), v: tensor(v) };
  const chain = chainOf(tokens);
  const sessions = await Promise.all(
    [1, chain].map((nodes) =>
      ort.InferenceSession.create(chainModel(nodes, tokens), {
        executionProviders: ["webgpu"],
        logSeverityLevel: 3,
      }),
    ),
  );
  const millisecondsOf = async (session) => {
    const start = performance.now();
    await session.run(feeds);
    return performance.now() - start;
  };
  return {
    out: async () => (await sessions[0].run(feeds)).out.data,
    time: async () => {
      const short = await millisecondsOf(sessions[0]);
      return ((await millisecondsOf(sessions[1])) - short) / (chain - 1);
    },
    close: async () => {
      for (const session of sessions) await session.release();
    },
  };
}

// ---- this library -------------------------------------------------------------------------------------------------

const median = (list) => list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)];

/**
 * Device milliseconds of one of so many calls in one submission. A call that is not timed comes first: for many tokens the buffers of all
 * operations together are more than what is kept for reuse, and making large ones takes as long as the operation.
 */
async function timeOf(run, calls) {
  const timed = (count) =>
    backend.time(() => {
      for (let i = 0; i < count; i++) backend.scope(() => void run());
    });
  await timed(1);
  return (await timed(calls)) / calls;
}

const PROBE = 2048;

/** A fixed work that shows the clock: the multiplication of two matrices, its rate in TFLOP/s. */
function openProbe() {
  const matrix = () => backend.tensor(randoms(PROBE * PROBE), [PROBE, PROBE]);
  const [a, b] = [matrix(), matrix()];
  return async () => (2 * PROBE ** 3) / (await timeOf(() => backend.matmul(a, b), 1)) / 1e9;
}

/** Runs the probe until its rate is steady. */
async function steady(probe) {
  const start = performance.now();
  let probes = [];
  while (performance.now() - start < MOST_MILLISECONDS) {
    const rate = await probe();
    const now = performance.now();
    if (probes.some((other) => Math.abs(other.rate - rate) > STEADY * rate)) probes = [];
    probes.push({ rate, now });
    if (now - probes[0].now > STEADY_MILLISECONDS) return;
  }
}

/** Independent, of mean 0 and variance 1. */
const randoms = (count) => {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = Math.sqrt(12) * (Math.random() - 0.5);
  return values;
};

const relativeError = (actual, expected) => {
  let [difference, norm] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i] - expected[i]) ** 2;
    norm += expected[i] ** 2;
  }
  return Math.sqrt(difference / norm);
};

/** The output of sampled rows, computed directly over the keys that each sees. */
function rowsByHand({ q, k, v }, rows, keysOf) {
  return rows.flatMap(([token, head]) => {
    const keys = keysOf(token, head).filter((key) => key <= token);
    const row = (x, t) => x.subarray((t * heads + head) * dim, (t * heads + head + 1) * dim);
    const query = row(q, token);
    const scores = keys.map(
      (key) => row(k, key).reduce((sum, y, c) => sum + y * query[c], 0) / Math.sqrt(dim),
    );
    const most = scores.reduce((a, b) => Math.max(a, b));
    const weights = scores.map((score) => Math.exp(score - most));
    const total = weights.reduce((a, b) => a + b);
    const out = new Float64Array(dim);
    for (const [j, key] of keys.entries()) {
      const values = row(v, key);
      for (let c = 0; c < dim; c++) out[c] += (weights[j] / total) * values[c];
    }
    return [...out];
  });
}

const allKeys = (token) => Array.from({ length: token + 1 }, (_, key) => key);

/** The keys of the blocks that a row was routed to. */
const routedKeys = (indices, tokens) => (token, head) => {
  const slots = indices.length / (tokens * heads);
  const at = (token * heads + head) * slots;
  return [...indices.subarray(at, at + slots)]
    .filter((block) => block >= 0)
    .flatMap((block) => Array.from({ length: blockSize }, (_, j) => block * blockSize + j));
};

/** Some rows of an output. */
const sample = (values, rows) =>
  rows.flatMap(([token, head]) => [
    ...values.subarray((token * heads + head) * dim, (token * heads + head + 1) * dim),
  ]);

// ---- the table ----------------------------------------------------------------------------------------------------

const ort = options.peer
  ? createRequire(resolve(options.peer, "package.json"))("onnxruntime-node")
  : undefined;
const backend = await openWebGpu(options.tier ? { tier: options.tier } : {});
console.log(
  `${backend.device}; ${options.dtype}, H = ${heads}, d = ${dim}, causal, B = ${blockSize}, k = ${topK}`,
);
if (ort) {
  const { version } = JSON.parse(
    readFileSync(
      createRequire(resolve(options.peer, "package.json")).resolve("onnxruntime-node/package.json"),
    ),
  );
  console.log(`onnxruntime-node ${version}, webgpu`);
}
const probe = openProbe();
const bound = options.dtype === "f32" ? 1e-4 : 2e-2;
const longest = Object.fromEntries(
  ["q", "k", "v", "dOut"].map((name) => [name, randoms(Math.max(...sizes) * heads * dim)]),
);
const results = [];
const time = (x) => (x === undefined ? "–" : x.toFixed(2)).padStart(9);
const ratio = (a, b) => (a === undefined || b === undefined ? "–" : (a / b).toFixed(2)).padStart(7);
console.log(
  "      N ort dense     dense   ratio      MoBA   ratio  = route + attend   MoBA bwd    /fwd dense bwd    /fwd    error ort error turns  TFLOP/s",
);
for (const tokens of sizes) {
  const host = Object.fromEntries(
    Object.entries(longest).map(([name, data]) => [name, data.subarray(0, tokens * heads * dim)]),
  );
  const [q, k, v, dOut] = [host.q, host.k, host.v, host.dOut].map((data) =>
    backend.tensor(data, [tokens, heads, dim], options.dtype),
  );
  const result = { tokens };
  const peer = ort && tokens <= Number(options["peer-most"]) ? await openPeer(ort, tokens, host) : undefined;

  const dense = backend.attention(q, k, v);
  const moba = backend.moba(q, k, v, { blockSize, topK });
  const rows = Array.from({ length: 16 }, () => [tokens, heads].map((n) => Math.floor(Math.random() * n)));
  const expected = rowsByHand(host, rows, allKeys);
  if (peer) result.peerError = relativeError(sample(await peer.out(), rows), expected);
  result.denseError = relativeError(sample(await dense.out.values(), rows), expected);
  const chosen = rowsByHand(host, rows, routedKeys(await moba.routing.indices.data(), tokens));
  result.mobaError = relativeError(sample(await moba.out.values(), rows), chosen);
  if (!(result.mobaError < bound && result.denseError < bound)) {
    console.log(`${tokens}: wrong, not timed`, result);
    process.exitCode = 1;
    continue;
  }

  const runs = {
    dense: () => backend.attention(q, k, v),
    route: () => backend.route(q, k, { blockSize, topK }),
    attend: () => backend.attend(q, k, v, moba.routing),
    moba: () => backend.moba(q, k, v, { blockSize, topK }),
    mobaBackward: () => backend.attendBackward(dOut, q, k, v, moba.out, moba.lse, moba.routing),
    ...(tokens <= MOST_DENSE_BACKWARD && {
      denseBackward: () => backend.attentionBackward(dOut, q, k, v, dense.out, dense.lse),
    }),
  };
  const measure = async () => {
    const times = { rate: await probe() };
    for (const [name, run] of Object.entries(runs)) times[name] = await timeOf(run, chainOf(tokens) - 1);
    if (peer) times.peer = await peer.time();
    return times;
  };
  await measure(); // for compiling and allocating
  await steady(probe);
  const turns = [];
  const end = performance.now() + MOST_TURN_MILLISECONDS;
  const isMore = () => turns.length < repeats && (turns.length < LEAST_TURNS || performance.now() < end);
  while (isMore()) turns.push(await measure());
  await peer?.close();
  for (const name of Object.keys(turns[0])) result[name] = median(turns.map((times) => times[name]));
  result.rates = turns.map(({ rate }) => rate);
  results.push(result);
  for (const tensor of [q, k, v, dOut, dense.out, dense.lse, moba.out, moba.lse, moba.routing])
    tensor.dispose();
  console.log(
    `${String(tokens).padStart(7)} ${time(result.peer)} ${time(result.dense)} ${ratio(result.peer, result.dense)} ` +
      `${time(result.moba)} ${ratio(result.peer, result.moba)} ${time(result.route)} ${time(result.attend)} ` +
      `${time(result.mobaBackward)} ${ratio(result.mobaBackward, result.moba)} ` +
      `${time(result.denseBackward)} ${ratio(result.denseBackward, result.dense)}  ` +
      `${Math.max(result.mobaError, result.denseError).toExponential(1)}   ${result.peerError?.toExponential(1) ?? "      –"} ` +
      `${String(turns.length).padStart(5)}  ${Math.min(...result.rates).toFixed(1)}–${Math.max(...result.rates).toFixed(1)}`,
  );
  if (options.json)
    writeFileSync(
      options.json,
      JSON.stringify({ device: backend.device, ...options, results }, undefined, 2),
    );
}
backend.dispose();
process.exit();

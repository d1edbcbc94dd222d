// Checks of the package on a GPU, with nothing but Node and what is built: `node tools/gpu-checks.mjs [part of a name …]`.
// Prints each check by name and ends with "N passed, N failed".
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { randomBytes, randomInt } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";
import { Arguments, Device } from "../dist/device.js";
import { cudaDevices, openCuda } from "../dist/index.js";

const ptx = Buffer.concat([readFileSync(new URL("gpu-kernels.ptx", import.meta.url)), Buffer.of(0)]);

/** What the check under way has opened: closed after it. */
const opened = [];

async function open(options) {
  const cuda = await openCuda(options);
  opened.push(() => cuda.dispose());
  return cuda;
}

/** A device with the kernels of `gpu-kernels.ptx`. */
function openDevice() {
  const device = new Device();
  opened.push(() => device.close());
  const module = device.loadModule(ptx);
  const launch = (name, args) => device.launch(device.kernelOf(module, name), [1, 1, 1], 1, 0, args);
  return {
    device,
    spin: (milliseconds) => launch("spin", new Arguments().long(Math.round(milliseconds * 1e6))),
    addOne: (pointer, count) => launch("add_one", new Arguments().pointer(pointer).int(count)),
  };
}

/** Random bytes fast: a random megabyte, each repetition of it shifted by another count. */
function randomData(byteLength) {
  const base = randomBytes(2 ** 20);
  const data = new Uint8Array(byteLength);
  for (let at = 0, i = 0; at < byteLength; at += base.length, i++) {
    const piece = base.subarray(0, Math.min(base.length, byteLength - at));
    data.set(piece, at);
    data[at] = i;
  }
  return data;
}

const isDeviceError = (pattern) => (error) => error.name === "DeviceError" && pattern.test(error.message);

/** Runs a module's text in a Node of its own. */
function runNode(source) {
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    ["--input-type=module", "-e", source],
    {
      encoding: "utf8",
      timeout: 60_000,
      cwd: fileURLToPath(new URL("..", import.meta.url)),
    },
  );
  return { status, signal, stdout, stderr };
}

/** One array after the other. */
function joined(a, b) {
  const all = new Float32Array(a.length + b.length);
  all.set(a);
  all.set(b, a.length);
  return all;
}

/** Decodes sequences step by step, captured and not, and compares with attention over all of their keys. */
async function decodePaged({ sequences, heads, kvHeads, headDim, topK, longestPrompt, steps }) {
  const cuda = await open();
  const [blockSize, pageSize] = [16, 32];
  const pages = sequences * Math.ceil((longestPrompt + steps) / pageSize);
  const randoms = (tokens, rows) =>
    Float32Array.from({ length: tokens * rows * headDim }, () => randomInt(-1000, 1001) / 500);
  const tensor = (data, rows) => cuda.tensor(data, [data.length / rows / headDim, rows, headDim], "bf16");
  const cache = cuda.pagedCache({ sequences, pages, pageSize, blockSize, kvHeads, headDim });
  const seen = Array.from({ length: sequences }, () => ({ k: new Float32Array(), v: new Float32Array() }));
  const append = (counts, k, v) => {
    let at = 0;
    counts.forEach((count, s) => {
      const end = at + count * kvHeads * headDim;
      seen[s].k = joined(seen[s].k, k.subarray(at, end));
      seen[s].v = joined(seen[s].v, v.subarray(at, end));
      at = end;
    });
  };
  const prompts = seen.map(() => randomInt(longestPrompt));
  const [k, v] = [0, 1].map(() =>
    randoms(
      prompts.reduce((a, b) => a + b),
      kvHeads,
    ),
  );
  cache.append(tensor(k, kvHeads), tensor(v, kvHeads), {
    cuSeqlens: [0, ...prompts.map((_, s) => prompts.slice(0, s + 1).reduce((a, b) => a + b))],
  });
  append(prompts, k, v);

  const inputs = [heads, kvHeads, kvHeads].map((rows) => tensor(randoms(sequences, rows), rows));
  const captured = cache.capture(...inputs, { topK });
  for (let step = 0; step < steps; step++) {
    const [q, newK, newV] = [heads, kvHeads, kvHeads].map((rows) => randoms(sequences, rows));
    for (const [i, data] of [q, newK, newV].entries()) cuda.write(inputs[i], data);
    const replayed = step % 3 > 0;
    if (replayed) captured.replay();
    const { out } = replayed ? captured : cache.decode(...inputs, { topK });
    append(
      seen.map(() => 1),
      newK,
      newV,
    );
    const mine = await out.values();
    for (const [s, { k, v }] of seen.entries()) {
      const width = heads * headDim;
      const tokens = k.length / kvHeads / headDim;
      const expected = cuda.moba(
        tensor(q.subarray(s * width, (s + 1) * width), heads),
        tensor(k, kvHeads),
        tensor(v, kvHeads),
        { blockSize, topK, cuSeqlens: [0, 1], cuSeqlensK: [0, tokens] },
      );
      const values = await expected.out.values();
      const apart = Math.max(...values.map((x, i) => Math.abs(x - mine[s * width + i])));
      assert.ok(apart < 0.02, `step ${step}, sequence ${s}: ${apart} apart`);
    }
  }
  assert.deepEqual(
    cache.lengths,
    seen.map(({ k }) => k.length / kvHeads / headDim),
  );
}

const checks = {
  async "tensors of every dtype come back as they went"() {
    const cuda = await open();
    const random = (length) => Float64Array.from({ length }, () => randomInt(-1000, 1000));
    for (const dtype of ["f32", "f16", "bf16", "i32"]) {
      for (const length of [0, 1, 3, 127, 4097]) {
        const values = random(length).map((x) => (dtype === "bf16" ? Math.trunc(x / 8) : x) + 0);
        const tensor = cuda.tensor(values, [length], dtype);
        assert.deepEqual(await tensor.values(), values);
      }
    }
    const zeros = cuda.zeros([1000], "u32");
    assert.deepEqual(await zeros.data(), new Uint32Array(1000));
  },

  async "large tensors come back as they went, also when the device is busy"() {
    const { device, spin } = openDevice();
    const data = randomData(600_000_001);
    const expected = Buffer.from(data);
    for (const busy of [false, true]) {
      if (busy) spin(300);
      const storage = device.storage(data.length);
      const start = performance.now();
      device.upload(storage.pointer, data);
      const called = performance.now() - start;
      data.fill(0);
      const read = await device.download(storage.pointer, data.length);
      assert.ok(expected.equals(new Uint8Array(read)), `busy: ${busy}`);
      console.log(`    ${busy ? "busy" : "idle"}: upload returned after ${called.toFixed(0)} ms`);
      data.set(expected);
      storage.free();
    }
  },

  async "many small transfers in flight stay in order"() {
    const { device, spin } = openDevice();
    const storage = device.storage(4);
    const reads = [];
    spin(100);
    for (let i = 0; i < 3000; i++) {
      device.upload(storage.pointer, Int32Array.of(i));
      if (i % 10 === 0)
        reads.push(device.download(storage.pointer, 4).then((read) => [i, new Int32Array(read)[0]]));
    }
    for (const [i, read] of await Promise.all(reads)) assert.equal(read, i);
  },

  async "a paged cache decodes as attention over all keys does"() {
    const few = { sequences: 3, kvHeads: 2 };
    await decodePaged({ ...few, heads: 4, headDim: 64, topK: 4, longestPrompt: 100, steps: 40 });
    await decodePaged({ ...few, heads: 8, headDim: 128, topK: 12, longestPrompt: 4000, steps: 6 });
    await decodePaged({ ...few, heads: 2, headDim: 64, topK: 70, longestPrompt: 4000, steps: 6 });
    const many = { sequences: 50, kvHeads: 8, heads: 32 };
    await decodePaged({ ...many, headDim: 128, topK: 8, longestPrompt: 300, steps: 3 });
    await decodePaged({ ...many, headDim: 64, topK: 5, longestPrompt: 300, steps: 3 });
    const long = { sequences: 70, kvHeads: 8, headDim: 16, topK: 8, longestPrompt: 4000 };
    await decodePaged({ ...long, heads: 8, steps: 2 });
    await decodePaged({ ...long, heads: 32, steps: 1 });
  },

  async "scores far apart are attended as by the plain kernels"() {
    const [best, plain] = [await open(), await open({ path: "plain" })];
    const [tokens, heads, topK] = [1500, 2, 4];
    for (const [headDim, blockSize, factor] of [64, 128].flatMap((d) =>
      [64, 128].flatMap((B) => [1, 20, 300].map((factor) => [d, B, factor])),
    )) {
      const shape = [tokens, heads, headDim];
      const normal = () =>
        Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
      const [q, k, v] = [factor, 1, 1].map((f) =>
        Float32Array.from({ length: tokens * heads * headDim }, () => f * normal()),
      );
      const inputs = (cuda) => [q, k, v].map((x) => cuda.tensor(x, shape, "bf16"));
      const actual = best.moba(...inputs(best), { blockSize, topK });
      const { indices } = actual.routing;
      const routing = plain.createRouting(await indices.data(), indices.shape, { blockSize, causal: true });
      const expected = plain.attend(...inputs(plain), routing);
      const [out, lse] = [await actual.out.values(), await actual.lse.values()];
      const [wantedOut, wantedLse] = [await expected.out.values(), await expected.lse.values()];
      const norm = (x) => Math.sqrt(x.reduce((sum, y) => sum + y * y, 0));
      const apart = norm(out.map((x, i) => x - wantedOut[i])) / norm(wantedOut);
      const lseApart = Math.max(
        ...lse.map((x, i) => Math.abs(x - wantedLse[i]) / (1 + Math.abs(wantedLse[i]))),
      );
      const what = `d ${headDim}, B ${blockSize}, queries times ${factor}: ${apart}, lse ${lseApart} apart`;
      assert.ok(apart < 5e-3 && lseApart < 1e-5, what);
    }
  },

  async "of many blocks those with infinite scores come first, those with NaN and −Infinity last"() {
    const cuda = await open();
    const [tokens, heads, blockSize] = [1200, 2, 4];
    const blocks = tokens / blockSize;
    for (const [headDim, topK] of [
      [64, 8],
      [128, 8],
      [64, 16],
      [128, 16],
    ]) {
      // Scores are those of the block, exactly, whatever the query.
      const value = Array.from({ length: blocks }, () => randomInt(-64, 64));
      for (let i = 0; i < 12; i++) value[randomInt(blocks)] = [Infinity, -Infinity, NaN][i % 3];
      const q = new Float32Array(tokens * heads * headDim).fill(1);
      const k = Float32Array.from({ length: q.length }, (_, i) => {
        const [token, channel] = [Math.floor(i / heads / headDim), i % headDim];
        const block = Math.floor(token / blockSize);
        return channel === 3 ? value[block] : 0;
      });
      const shape = [tokens, heads, headDim];
      const { indices } = cuda.route(cuda.tensor(q, shape, "bf16"), cuda.tensor(k, shape, "bf16"), {
        blockSize,
        topK,
      });
      const routed = await indices.data();
      const rank = value.map((x) => (Number.isNaN(x) ? -Infinity : x));
      for (let row = 0; row < tokens * heads; row++) {
        const own = Math.floor(row / heads / blockSize);
        const sorted = Array.from({ length: own }, (_, i) => i).sort((a, b) =>
          rank[a] === rank[b] ? a - b : rank[b] - rank[a],
        );
        const expected = [...sorted.slice(0, topK - 1), own].sort((a, b) => a - b);
        const chosen = [...routed.subarray(row * topK, (row + 1) * topK)].filter((block) => block >= 0);
        assert.deepEqual(
          chosen.sort((a, b) => a - b),
          expected,
          `d ${headDim}, k ${topK}, row ${row}`,
        );
      }
    }
  },

  async "a read does not block the event loop, and reads what was there before later work"() {
    const { device, spin, addOne } = openDevice();
    const storage = device.storage(4);
    device.fill(storage.pointer, 4, 0);
    addOne(storage.pointer, 1);
    spin(1000);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 10);
    const start = performance.now();
    const read = device.download(storage.pointer, 4);
    addOne(storage.pointer, 1);
    const called = performance.now() - start;
    const first = new Float32Array(await read)[0];
    const waited = performance.now() - start;
    clearInterval(timer);
    assert.equal(first, 1);
    assert.equal(new Float32Array(await device.download(storage.pointer, 4))[0], 2);
    assert.ok(called < 100, `the call took ${called} ms`);
    assert.ok(waited > 900, `it was there after ${waited} ms`);
    assert.ok(ticks > 50, `${ticks} ticks`);
  },

  async "reads in a row give what was there, whatever comes between and after"() {
    const { device, spin, addOne } = openDevice();
    const storage = device.storage(4);
    device.fill(storage.pointer, 4, 0);
    const reads = [];
    for (let turn = 0; turn < 4; turn++) {
      spin(20);
      for (let i = 0; i < 25; i++) {
        const expected = 25 * turn + i;
        for (let row = randomInt(4); row >= 0; row--) {
          reads.push(
            device.download(storage.pointer, 4).then((read) => [expected, new Float32Array(read)[0]]),
          );
        }
        addOne(storage.pointer, 1);
      }
      if (turn % 2 === 0) await sleep(1);
      for (let row = 0; row < 3; row++) {
        reads.push(
          device.download(storage.pointer, 4).then((read) => [25 * turn + 25, new Float32Array(read)[0]]),
        );
        if (row === turn) await sleep(1);
      }
    }
    for (const [expected, read] of await Promise.all(reads)) assert.equal(read, expected);
  },

  async "200 pending reads leave Node's thread pool free"() {
    const { device, spin } = openDevice();
    const storage = device.storage(1024);
    spin(1000);
    const start = performance.now();
    const calls = [];
    const reads = Array.from({ length: 200 }, () => {
      const called = performance.now();
      const read = device.download(storage.pointer, 1024);
      calls.push(performance.now() - called);
      return read;
    });
    const called = performance.now() - start;
    await import("node:fs/promises").then(({ stat }) => stat("."));
    const passed = performance.now() - start;
    await Promise.all(reads);
    const slowest = Math.max(...calls);
    assert.ok(
      passed < 500,
      `${passed} ms, of which the calls took ${called}, number ${calls.indexOf(slowest)} of them ${slowest}`,
    );
  },

  async "device time is that of the work"() {
    const { device, spin } = openDevice();
    spin(1);
    const milliseconds = await device.time(() => spin(50));
    assert.ok(milliseconds > 49 && milliseconds < 60, `${milliseconds} ms`);
    const storage = device.storage(1024);
    const launches = await device.profile(() => {
      spin(5);
      device.fill(storage.pointer, 1024, 0);
      spin(10);
    });
    assert.deepEqual(
      launches.map(({ name }) => name),
      ["spin", "fill", "spin"],
    );
    assert.ok(
      launches[0].milliseconds > 4.9 && launches[0].milliseconds < 7,
      `${launches[0].milliseconds} ms`,
    );
    assert.ok(
      launches[2].milliseconds > 9.9 && launches[2].milliseconds < 12,
      `${launches[2].milliseconds} ms`,
    );
  },

  async "work beside runs at the same time, in order, on memory of its own"() {
    const { device, spin, addOne } = openDevice();
    const storage = device.storage(4);
    const run = () => {
      device.fill(storage.pointer, 4, 0);
      let freed;
      const join = device.beside(() => {
        const scratch = device.scratch(4096);
        addOne(storage.pointer, 1);
        spin(50);
        addOne(storage.pointer, 1);
        freed = scratch.pointer;
        scratch.dispose();
      });
      const scratch = device.scratch(4096);
      assert.notEqual(scratch.pointer, freed);
      spin(50);
      join();
      addOne(storage.pointer, 1);
      scratch.dispose();
    };
    run();
    const milliseconds = await device.time(run);
    assert.ok(milliseconds > 49 && milliseconds < 75, `${milliseconds} ms`);
    assert.equal(new Float32Array(await device.download(storage.pointer, 4))[0], 3);
  },

  async "out of memory is an error that says how much, and the next call works"() {
    const cuda = await open();
    const { memoryBytes } = cudaDevices()[0];
    const before = cuda.zeros([2 ** 20]);
    assert.throws(
      () => cuda.zeros([memoryBytes]),
      isDeviceError(/CUDA_ERROR_OUT_OF_MEMORY: no memory for \d+ bytes/),
    );
    const after = cuda.zeros([2 ** 20]);
    before.dispose();
    assert.equal((await after.data())[2 ** 20 - 1], 0);
    assert.equal(cuda.memory().tensors, 1);
  },

  async "an impossible shape is an error, and the next call works"() {
    const cuda = await open();
    const [q, k] = [cuda.zeros([100, 4, 64], "bf16"), cuda.zeros([100, 3, 64], "bf16")];
    assert.throws(() => cuda.moba(q, k, k, { blockSize: 16, topK: 2 }), { name: "ShapeError" });
    assert.throws(() => cuda.moba(q, q, q, { blockSize: 0, topK: 2 }), { name: "ArgumentError" });
    assert.throws(() => cuda.zeros([2 ** 60]), { name: "ShapeError" });
    assert.throws(() => cuda.zeros([2 ** 48]), isDeviceError(/OUT_OF_MEMORY/));
    const { out } = cuda.moba(q, q, q, { blockSize: 16, topK: 2 });
    assert.ok((await out.values()).every((value) => value === 0));
  },

  async "the limit on memory holds, and what is cached is given back for it"() {
    const cuda = await open({ maxBytes: 2 ** 26 });
    for (let i = 0; i < 20; i++) {
      const tensor = cuda.zeros([2 ** 22 + i * 2 ** 18]);
      await tensor.data();
      tensor.dispose();
    }
    const { usedBytes, cachedBytes } = cuda.deviceMemory();
    assert.ok(usedBytes + cachedBytes <= 2 ** 26);
    assert.throws(
      () => cuda.zeros([2 ** 25]),
      isDeviceError(/no memory for 134217728 bytes.*maxBytes is 67108864/),
    );
    const again = cuda.zeros([2 ** 23]);
    assert.equal((await again.data()).length, 2 ** 23);
  },

  async "an operation that finds no memory gives back what it had taken"() {
    let failures = 0;
    for (let maxBytes = 2 ** 21; ; maxBytes += 2 ** 18) {
      const cuda = await open({ maxBytes });
      const q = cuda.zeros([4096, 2, 64], "bf16");
      let held = cuda.deviceMemory().usedBytes;
      try {
        const routing = cuda.route(q, q, { blockSize: 32, topK: 4 });
        held = cuda.deviceMemory().usedBytes;
        cuda.attend(q, q, q, routing);
        break;
      } catch (error) {
        if (!isDeviceError(/no memory for \d+ bytes/)(error)) throw error;
      }
      assert.equal(cuda.deviceMemory().usedBytes, held);
      failures++;
    }
    assert.ok(failures > 3, `only ${failures} without memory`);
  },

  async "a launch that is refused is an error, and the next call works"() {
    const { device, spin } = openDevice();
    const kernel = device.kernelOf(device.loadModule(ptx), "spin");
    const launch = (threads, shared) =>
      device.launch(kernel, [1, 1, 1], threads, shared, new Arguments().long(1));
    assert.throws(() => launch(5000, 0), isDeviceError(/CUDA_ERROR_INVALID_VALUE.*launching spin/));
    assert.throws(() => launch(32, 2 ** 24), isDeviceError(/CUDA_ERROR_INVALID_VALUE.*shared memory/));
    assert.throws(
      () => device.kernelOf(device.loadModule(ptx), "absent"),
      isDeviceError(/NOT_FOUND.*absent/),
    );
    assert.throws(() => device.kernel("absent", "absent"), isDeviceError(/absent\.fatbin is missing/));
    spin(1);
    await device.synchronize();
  },

  async "a kernel with shared memory of its own takes as much more as one without"() {
    const { device } = openDevice();
    const kernel = device.kernelOf(device.loadModule(ptx), "own_shared");
    const most = device.sharedBytesPerBlock - 1024;
    for (const shared of [0, 47 * 1024, 48 * 1024, 48 * 1024 + 16, most]) {
      device.launch(kernel, [1, 1, 1], 1, shared, new Arguments());
    }
    assert.throws(
      () => device.launch(kernel, [1, 1, 1], 1, most + 1024, new Arguments()),
      isDeviceError(/CUDA_ERROR_INVALID_VALUE.*shared memory/),
    );
    await device.synchronize();
  },

  // In processes of their own: after such a failure the driver takes no more work of the process.
  async "a lost device says so wherever it is used, and a fresh process works"() {
    const result = runNode(`
      import assert from "node:assert/strict";
      import { readFileSync } from "node:fs";
      import { Arguments, Device } from "./dist/device.js";
      import { openCuda } from "./dist/index.js";
      const device = new Device();
      const bystander = await openCuda();
      const tensor = bystander.zeros([10]);
      const storage = device.storage(1024);
      const ptx = Buffer.concat([readFileSync("tools/gpu-kernels.ptx"), Buffer.alloc(1)]);
      device.launch(device.kernelOf(device.loadModule(ptx), "fail"), [1, 1, 1], 1, 0, new Arguments());
      const isLost = (pattern) => (error) => error.name === "DeviceError" && pattern.test(error.message);
      await assert.rejects(device.download(storage.pointer, 1024), isLost(/CUDA_ERROR_(LAUNCH_FAILED|ILLEGAL_INSTRUCTION)/));
      assert.throws(() => device.fill(storage.pointer, 4, 0), isLost(/CUDA_ERROR_.*lost/));
      await assert.rejects(tensor.data(), isLost(/lost/));
      assert.throws(() => bystander.tensor([1], [1]), isLost(/lost.*start a new one/));
      tensor.dispose();
      bystander.dispose();
      storage.free();
      device.close();
      await assert.rejects(openCuda(), isLost(/start a new one/));
      process.exitCode = 7;
    `);
    assert.equal(result.status, 7, result.stderr);
    const cuda = await open();
    assert.equal((await cuda.zeros([1]).data())[0], 0);
  },

  async "a captured sequence replays on the same memory, which stays reserved for it"() {
    const { device, addOne } = openDevice();
    const counter = device.storage(4);
    device.fill(counter.pointer, 4, 0);
    let copied;
    const constants = [];
    const graph = device.capture(() => {
      addOne(counter.pointer, 1);
      const scratch = device.scratch(4);
      device.copy(scratch.pointer, counter.pointer, 4);
      scratch.dispose();
      const other = device.scratch(4);
      device.fill(other.pointer, 4, 7);
      other.dispose();
      copied = device.storage(4);
      device.copy(copied.pointer, counter.pointer, 4);
      constants.push(device.constant(Int32Array.of(1, 2, 3)));
      assert.throws(() => device.upload(counter.pointer, Int32Array.of(1)), isDeviceError(/capture/));
    });
    for (let i = 1; i <= 5; i++) {
      graph.replay();
      // Others must not get the graph's memory, nor change its constants.
      const intruder = device.scratch(4);
      device.fill(intruder.pointer, 4, 255);
      intruder.dispose();
      assert.equal(new Float32Array(await device.download(copied.pointer, 4))[0], i);
      assert.deepEqual([...new Int32Array(await device.download(constants[0], 12))], [1, 2, 3]);
    }
    counter.free();
    copied.free();
    graph.replay();
    await device.synchronize();
    const held = device.memory().usedBytes;
    graph.dispose();
    assert.ok(device.memory().usedBytes < held);
    assert.throws(() => graph.replay(), isDeviceError(/disposed/));
    assert.throws(() => device.capture(() => assert.fail("on purpose")), /on purpose/);
    await device.synchronize();
  },

  async "what is closed with reads pending still reads"() {
    const { device, spin } = openDevice();
    const storage = device.storage(4);
    device.fill(storage.pointer, 4, 1);
    spin(100);
    const read = device.download(storage.pointer, 4);
    device.close();
    assert.equal(new Int32Array(await read)[0], 0x01010101);
    assert.throws(() => device.fill(storage.pointer, 4, 0), isDeviceError(/closed/));
  },

  async "threads come and go, with work and reads pending"() {
    const source = `
      import { Device } from ${JSON.stringify(new URL("../dist/device.js", import.meta.url).href)};
      const device = new Device();
      const storage = device.storage(2 ** 24);
      for (let i = 0; i < 10; i++) device.fill(storage.pointer, 2 ** 24, i);
      device.download(storage.pointer, 2 ** 24);
      if (Math.random() < 0.5) await device.download(storage.pointer, 1024);
      process.exit(0);
    `;
    const url = new URL(`data:text/javascript,${encodeURIComponent(source)}`);
    for (let round = 0; round < 5; round++) {
      const workers = Array.from({ length: 4 }, () => new Worker(url));
      if (round === 4) {
        await sleep(50);
        await Promise.all(workers.map((worker) => worker.terminate()));
      } else {
        await Promise.all(
          workers.map((worker) => new Promise((done, failed) => worker.on("exit", done).on("error", failed))),
        );
      }
    }
    const cuda = await open();
    assert.equal((await cuda.zeros([1]).data())[0], 0);
  },

  async "a process exits well with reads pending"() {
    for (const exit of ["process.exit(3)", "await read; process.exitCode = 3", "process.exitCode = 3"]) {
      const result = runNode(`
        import { Device } from "./dist/device.js";
        const device = new Device();
        const storage = device.storage(2 ** 26);
        device.fill(storage.pointer, 2 ** 26, 1);
        const read = device.download(storage.pointer, 2 ** 26);
        ${exit}`);
      assert.deepEqual(result, { status: 3, signal: null, stdout: "", stderr: "" }, exit);
    }
  },

  async "every device opens"() {
    for (const [index, { name }] of cudaDevices().entries()) {
      const cuda = await open({ device: index });
      assert.ok(cuda.device.startsWith(name));
      const tensor = cuda.tensor([1, 2, 3], [3]);
      assert.deepEqual([...(await tensor.data())], [1, 2, 3]);
    }
    await assert.rejects(openCuda({ device: 99 }), isDeviceError(/no device 99/));
  },
};

const parts = process.argv.slice(2);
const wanted = Object.keys(checks).filter(
  (name) => parts.length === 0 || parts.some((part) => name.includes(part)),
);
const devices = cudaDevices();
console.log(`${devices.length} device(s), the first: ${devices[0]?.name}`);
let failed = 0;
for (const name of wanted) {
  const start = performance.now();
  try {
    await checks[name]();
    console.log(`✓ ${name} (${(performance.now() - start).toFixed(0)} ms)`);
  } catch (error) {
    failed += 1;
    console.log(`✗ ${name}\n${error.stack}`);
  } finally {
    for (const close of opened.splice(0)) close();
  }
}
console.log(`${wanted.length - failed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;

// Checks of training on a GPU, with nothing but Node and what is built: `node tools/training-checks.mjs [part of a name …]`.
// Prints each check by name and ends with "N passed, N failed".
import assert from "node:assert/strict";
import { createHash, randomInt } from "node:crypto";
import { PRESETS, Tape, Trainer, Transformer } from "../../model/dist/index.js";
import { ReferenceBackend } from "../../reference/dist/index.js";
import { openCuda } from "../dist/index.js";

const seed = Number(process.env.SEED ?? randomInt(2 ** 31));
console.log(`seed ${seed}`);

/** Sequences of these lengths, of random digits in words: their spelling is to be learned, their order cannot be. */
function textBatch(seed, lengths) {
  const words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
  const cuSeqlens = Int32Array.from([
    0,
    ...lengths.map((_, i) => lengths.slice(0, i + 1).reduce((a, b) => a + b)),
  ]);
  const size = cuSeqlens[lengths.length] + 1;
  let text = "";
  for (let state = seed; text.length < size; ) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    text += `${words[Math.floor((state / 2 ** 32) * 10)]} `;
  }
  const bytes = Int32Array.from(text.slice(0, size), (letter) => letter.charCodeAt(0));
  return { tokens: bytes.slice(0, -1), targets: bytes.slice(1), cuSeqlens };
}

const schedule = (steps) => ({ steps, learningRate: 0.001, warmupSteps: 20, weightDecay: 0.1, clipNorm: 1 });

/** Losses of a run of `tiny`. */
async function lossesOf(backend, steps) {
  const model = Transformer.initialize(backend, PRESETS.tiny, { seed });
  const trainer = new Trainer(model, schedule(steps));
  const losses = [];
  while (trainer.step < steps) {
    losses.push((await trainer.train([textBatch(seed + trainer.step, [96, 32])])).loss);
  }
  trainer.dispose();
  model.dispose();
  return losses;
}

/** A hash of the bits of tensors. */
async function hashOf(tensors) {
  const hash = createHash("sha256");
  for (const tensor of tensors) {
    const { buffer, byteOffset, byteLength } = await tensor.data();
    hash.update(new Uint8Array(buffer, byteOffset, byteLength));
  }
  return hash.digest("hex");
}

const valuesOf = (model) => [...model.parameters.values()].map(({ value }) => value);

const checks = {
  async "tiny trains as on the CPU, 200 steps"(cuda) {
    const steps = 200;
    const [gpu, cpu] = [await lossesOf(cuda, steps), await lossesOf(new ReferenceBackend(), steps)];
    const worst = Math.max(...gpu.map((loss, i) => Math.abs(loss / cpu[i] - 1)));
    console.log(
      `  loss ${cpu[0].toFixed(3)} → ${cpu[steps - 1].toFixed(3)}, at most ${(100 * worst).toFixed(3)} % apart`,
    );
    assert.ok(cpu[steps - 1] < cpu[0] - 1);
    assert.ok(worst < 0.01);
  },

  async "captured steps are those that are not, bit for bit"(cuda) {
    const hashes = [];
    for (const capture of [true, false]) {
      if (!capture) cuda.capture = undefined; // hides the method
      const model = Transformer.initialize(cuda, PRESETS.tiny, { seed, compute: "bf16" });
      const trainer = new Trainer(model, schedule(12));
      while (trainer.step < 12) {
        // Other shapes now and then: what was captured is dropped, and captured anew.
        const lengths = trainer.step % 6 === 5 ? [50, 78] : [96, 32];
        await trainer.train([textBatch(seed + trainer.step, lengths)]);
      }
      hashes.push(await hashOf(valuesOf(model)));
      trainer.dispose();
      model.dispose();
    }
    assert.equal(hashes[0], hashes[1]);
  },

  async "steps ahead of one that diverged change nothing"(cuda) {
    const model = Transformer.initialize(cuda, PRESETS.tiny, { seed, compute: "bf16" });
    const trainer = new Trainer(model, schedule(100));
    const batch = textBatch(seed, [96, 32]);
    for (let step = 0; step < 4; step++) await trainer.train([batch]);
    const weight = model.parameters.get("norm.weight").value;
    const good = await weight.data();
    const before = await hashOf(valuesOf(model));
    cuda.write(
      weight,
      good.map(() => Number.POSITIVE_INFINITY),
    );
    const failing = trainer.train([batch]);
    cuda.write(weight, good);
    const next = trainer.train([batch]);
    await Promise.all([assert.rejects(failing, /diverged/), assert.rejects(next, /diverged/)]);
    assert.equal(await hashOf(valuesOf(model)), before);
    assert.equal(trainer.step, 4);
    assert.equal((await trainer.train([batch])).step, 5);
    trainer.dispose();
    model.dispose();
  },

  async "memory is flat, and all of it comes back"(cuda) {
    const used = () => cuda.deviceMemory().usedBytes;
    const start = used();
    const model = Transformer.initialize(cuda, PRESETS.tiny, { seed, compute: "bf16" });
    const trainer = new Trainer(model, schedule(1000));
    const after = [];
    for (let round = 0; round < 10; round++) {
      for (let step = 0; step < 10; step++) {
        await trainer.train([textBatch(seed + trainer.step, step < 5 ? [96, 32] : [64 + step, 64 - step])]);
      }
      after.push(used());
    }
    assert.ok(Math.max(...after) - Math.min(...after) < 2 ** 20, after.join(" "));
    trainer.dispose();
    model.dispose();
    assert.ok(used() - start < 2 ** 20);
  },

  async "gradients of the 340m model are the same bits in 5 runs"(cuda) {
    const model = Transformer.initialize(cuda, PRESETS["340m"], { seed, compute: "bf16" });
    const { tokens, targets, cuSeqlens } = textBatch(seed, [5000, 3192]);
    const hashes = new Set();
    for (let run = 0; run < 5; run++) {
      cuda.scope(() => {
        const tape = new Tape(cuda);
        const losses = model.loss(
          tape,
          model.packedBatch(tokens, cuSeqlens),
          cuda.tensor(targets, [targets.length], "i32"),
        );
        tape.backward(
          losses,
          cuda.tensor(new Float32Array(targets.length).fill(1 / targets.length), [targets.length]),
        );
        return [...model.parameters.values()].map(({ gradient }) => gradient);
      });
      const gradients = [...model.parameters.values()].map((parameter) => parameter.takeGradient());
      const norms = await Promise.all(
        gradients.slice(0, 5).map(async (gradient) => (await cuda.sumSquares(gradient).values())[0]),
      );
      assert.ok(
        norms.every((norm) => norm > 0 && Number.isFinite(norm)),
        norms.join(" "),
      );
      hashes.add(await hashOf(gradients));
      for (const gradient of gradients) gradient.dispose();
    }
    assert.equal(hashes.size, 1);
    model.dispose();
  },
};

const parts = process.argv.slice(2);
const wanted = Object.keys(checks).filter(
  (name) => parts.length === 0 || parts.some((part) => name.includes(part)),
);
let failed = 0;
for (const name of wanted) {
  const start = performance.now();
  const cuda = await openCuda();
  try {
    if (name === wanted[0]) console.log(cuda.device);
    await checks[name](cuda);
    console.log(`✓ ${name} (${(performance.now() - start).toFixed(0)} ms)`);
  } catch (error) {
    failed += 1;
    console.log(`✗ ${name}\n${error.stack}`);
  } finally {
    cuda.dispose();
  }
}
console.log(`${wanted.length - failed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;

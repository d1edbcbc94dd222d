import { spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ReferenceBackend } from "@moba-js/reference";
import { ArgumentError, FormatError } from "@moba-js/tensor";
import { build } from "esbuild";
import { afterAll, describe, expect, it } from "vitest";
import { ByteTokenizer, memorySource, START, Trainer } from "../src/index.js";
import {
  holdOut,
  listCheckpoints,
  loadModel,
  loadMoments,
  loadRunState,
  runTraining,
  saveCheckpoint,
  saveModel,
  textSource,
} from "../src/node.js";
import { KINDS, miniature, randomModel } from "./models.js";
import { freshSeed, TestRandom } from "./random.js";

const seed = freshSeed();
console.log(`checkpoints: seed ${seed}`);

const scratch = mkdtempSync(join(tmpdir(), "moba-checkpoint-"));
afterAll(() => rmSync(scratch, { recursive: true }));

const trainedModel = async (name: string, shardBytes?: number) => {
  const backend = new ReferenceBackend();
  const random = new TestRandom(seed);
  const trainer = new Trainer(randomModel(backend, miniature(KINDS["moba, W = 3"]), random), {
    steps: 5,
    learningRate: 0.01,
  });
  const tokens = random.tokens(20, 11);
  await trainer.train([{ tokens, targets: tokens, cuSeqlens: Int32Array.of(0, 20) }]);
  const folder = join(scratch, name);
  const options = shardBytes === undefined ? {} : { shardBytes };
  return { backend, trainer, folder, saved: await saveCheckpoint(folder, trainer, START, options) };
};

describe("a checkpoint", () => {
  it.each([
    ["in one file", undefined, 1],
    ["in shards", 1000, 7],
  ])("%s holds model, moments and state bit for bit", async (name, shardBytes, files) => {
    const { trainer, saved } = await trainedModel(name, shardBytes);
    const backend = new ReferenceBackend();
    const model = await loadModel(backend, saved);
    const moments = await loadMoments(backend, saved, model.config);
    expect(model.config).toEqual(trainer.model.config);
    for (const [key, { value }] of trainer.model.parameters) {
      expect(await model.parameters.get(key)?.value.data(), key).toEqual(await value.data());
      expect(await moments.get(key)?.v.data(), key).toEqual(await trainer.moments.get(key)?.v.data());
      expect(await moments.get(key)?.m.data(), key).toEqual(await trainer.moments.get(key)?.m.data());
    }
    expect(await loadRunState(saved)).toEqual({ step: 1, position: START });
    expect(
      readdirSync(saved).filter((file) => /^model.*\.safetensors$/.test(file)).length,
    ).toBeGreaterThanOrEqual(files);
  });

  it("loads in another dtype", async () => {
    const { trainer, saved } = await trainedModel("dtype");
    const model = await loadModel(new ReferenceBackend(), saved, { dtype: "bf16" });
    expect(model.compute).toBe("bf16");
    const norm = await model.parameters.get("norm.weight")?.value.values();
    const original = await trainer.model.parameters.get("norm.weight")?.value.values();
    norm?.forEach((x, i) => {
      expect(x).toBeCloseTo(original?.[i] as number, 1);
    });
  });

  it("stays, with the one before; older ones go", async () => {
    const { trainer, folder } = await trainedModel("keep");
    for (let i = 0; i < 3; i++) {
      const tokens = Int32Array.of(1, 2, 3);
      await trainer.train([{ tokens, targets: tokens, cuSeqlens: Int32Array.of(0, 3) }]);
      await saveCheckpoint(folder, trainer, START);
    }
    expect(readdirSync(folder)).toEqual(["step-00000003", "step-00000004"]);
    expect(await listCheckpoints(folder)).toHaveLength(2);
    expect(await listCheckpoints(join(scratch, "nowhere"))).toEqual([]);
  });

  it.each([
    ["config.json", () => "{"],
    ["config.json", () => '{"heads": 3}'],
    ["training.json", () => '{"step": -1}'],
    ["training.json", () => "null"],
    ["optimizer.safetensors", (file: Buffer) => file.subarray(0, file.length - 1)],
    ["optimizer.safetensors", () => ""],
    [
      "model.safetensors",
      (file: Buffer) => Buffer.from(file.toString("latin1").replace("norm", "morn"), "latin1"),
    ],
    ["model.safetensors.index.json", () => '{"weight_map": {"a": "../../etc/passwd"}}'],
    ["model.safetensors.index.json", () => "null"],
  ])("with a broken %s is refused with a FormatError", async (file, broken) => {
    const { backend, trainer, saved } = await trainedModel(`broken-${Math.random()}`);
    const model = await loadModel(backend, saved);
    const path = join(saved, file);
    writeFileSync(path, broken(file.includes("index") ? Buffer.alloc(0) : readFileSync(path)));
    const before = backend.memory().tensors;
    const load = async () => {
      (await loadModel(backend, saved)).dispose();
      for (const { m, v } of (await loadMoments(backend, saved, model.config)).values()) {
        m.dispose();
        v.dispose();
      }
      await loadRunState(saved);
    };
    await expect(load()).rejects.toThrow(FormatError);
    expect(backend.memory().tensors).toBe(before);
    for (const held of [trainer.model, model]) held.dispose(); // until here, or the collector would free what was counted
  });

  it("of a model alone is written once, whole", async () => {
    const { trainer } = await trainedModel("alone");
    await saveModel(trainer.model, join(scratch, "model"));
    expect(readdirSync(join(scratch, "model"))).toEqual(["config.json", "model.safetensors"]);
    await expect(loadModel(new ReferenceBackend(), join(scratch, "nowhere"))).rejects.toThrow(FormatError);
  });
});

const text = Array.from({ length: 60 }, (_, i) => `line ${i} of a text that is read again and again\n`).join(
  "",
);

const runOptions = (folder: string) => ({
  folder,
  config: { ...miniature(KINDS["moba, W = 3"]), vocabulary: 257 },
  tokenizer: new ByteTokenizer(),
  source: memorySource("text", text.match(/.{1,70}/gs) as string[]),
  training: { steps: 60, learningRate: 0.01, warmupSteps: 5 },
  batchTokens: 64,
  accumulate: 2,
  saveEvery: 3,
  evaluateEvery: 20,
  seed: 7,
});

describe("a run", () => {
  it("that is killed ten times at random ends with the same weights, bit for bit", async () => {
    const whole = join(scratch, "whole");
    const steps: number[] = [];
    const options = runOptions(whole);
    await runTraining(new ReferenceBackend(), {
      ...options,
      heldOut: options.source,
      onStep: ({ step }) => steps.push(step),
    });
    expect(steps).toEqual(Array.from({ length: 60 }, (_, i) => i + 1));
    const weights = readFileSync(join(whole, "step-00000060", "model.safetensors"));
    const moments = readFileSync(join(whole, "step-00000060", "optimizer.safetensors"));

    // The same run in a process of its own.
    const resolve = (path: string) => fileURLToPath(new URL(path, import.meta.url));
    const program = join(scratch, "run.mjs");
    const source = JSON.stringify(runOptions(join(scratch, "killed")), (key, value) =>
      key === "source" ? undefined : value,
    );
    await build({
      stdin: {
        contents: `
          import { ReferenceBackend } from "@moba-js/reference";
          import { ByteTokenizer, memorySource } from "@moba-js/model";
          import { runTraining } from "@moba-js/model/node";
          const options = { ...${source}, tokenizer: new ByteTokenizer(),
            source: memorySource("text", ${JSON.stringify(text)}.match(/.{1,70}/gs)) };
          runTraining(new ReferenceBackend(), { ...options, heldOut: options.source, onStep: ({ step }) => console.log(step) });`,
        resolveDir: resolve("."),
      },
      outfile: program,
      bundle: true,
      platform: "node",
      target: "node20",
      format: "esm",
      alias: {
        "@moba-js/model/node": resolve("../src/node.ts"),
        "@moba-js/model": resolve("../src/index.ts"),
        "@moba-js/reference": resolve("../../reference/src/index.ts"),
        "@moba-js/snr": resolve("../../snr/src/index.ts"),
        "@moba-js/tensor": resolve("../../tensor/src/index.ts"),
      },
    });
    const random = new TestRandom(seed);
    const start = () => {
      const child = spawn(process.execPath, [program], { stdio: ["ignore", "pipe", "inherit"] });
      const done = new Promise<number | null>((ended) => child.once("exit", (code) => ended(code)));
      const steps = async (count: number) => {
        for await (const chunk of child.stdout) {
          count -= String(chunk).trim().split("\n").length;
          if (count <= 0) return;
        }
      };
      return { child, done, steps };
    };
    const folder = join(scratch, "killed");
    const resumed: number[] = [];
    for (let kill = 0; kill < 10; kill++) {
      const { child, done, steps } = start();
      await steps(random.int(1, 10));
      await new Promise((later) => setTimeout(later, random.uniform() * 50));
      child.kill("SIGKILL");
      await done;
      const newest = (await listCheckpoints(folder)).at(-1);
      if (!newest) continue;
      const backend = new ReferenceBackend();
      await loadMoments(backend, newest, (await loadModel(backend, newest)).config);
      resumed.push((await loadRunState(newest)).step);
    }
    console.log(`steps that runs went on from: ${resumed.join(", ")}`);
    expect(new Set(resumed).size).toBeGreaterThan(3);
    expect(await start().done).toBe(0);
    expect(readFileSync(join(folder, "step-00000060", "model.safetensors")).equals(weights)).toBe(true);
    expect(readFileSync(join(folder, "step-00000060", "optimizer.safetensors")).equals(moments)).toBe(true);
    const metrics = (run: string) => readFileSync(join(run, "metrics.jsonl"), "utf8");
    expect(metrics(folder)).toBe(metrics(whole));
    expect(metrics(folder).trim().split("\n")).toHaveLength(60);
    expect(readFileSync(join(folder, "loss.html"), "utf8")).toContain("<svg");
  });

  it("does not go on with another model", async () => {
    const options = runOptions(join(scratch, "other"));
    const short = { ...options, training: { ...options.training, steps: 1 } };
    await runTraining(new ReferenceBackend(), short);
    const other = { ...short, config: { ...short.config, mlp: 4 } };
    await expect(runTraining(new ReferenceBackend(), other)).rejects.toThrow(ArgumentError);
  });
});

describe("a text file", () => {
  const write = (name: string, contents: string | Uint8Array) => {
    const path = join(scratch, name);
    writeFileSync(path, contents);
    return path;
  };
  const read = async (source: ReturnType<typeof textSource>, from = 0) => {
    const documents: string[] = [];
    for await (const document of source.documents(from)) documents.push(document);
    return documents;
  };

  it("is read in pieces of whole lines, from any of them on", async () => {
    const contents = Array.from({ length: 500 }, (_, i) => `línea ${i}\n`).join("");
    const source = textSource(write("text.txt", contents), 100);
    const documents = await read(source);
    expect(documents.join("")).toBe(contents);
    expect(documents.slice(0, -1).every((piece) => piece.length >= 100 && piece.endsWith("\n"))).toBe(true);
    expect(await read(source, 7)).toEqual(documents.slice(7));
    const { training, heldOut } = holdOut(source, 5);
    expect(await read(heldOut)).toEqual(documents.filter((_, i) => i % 5 === 4));
    expect(await read(heldOut, 2)).toEqual(documents.filter((_, i) => i % 5 === 4).slice(2));
    for (const from of [0, 3, 4, 9]) {
      expect(await read(training, from)).toEqual(documents.filter((_, i) => i % 5 !== 4).slice(from));
    }
  });

  it("that is no UTF-8 or is not there is refused", async () => {
    await expect(read(textSource(write("bad.txt", Uint8Array.of(0x61, 0xff))))).rejects.toThrow(FormatError);
    await expect(read(textSource(write("cut.txt", Uint8Array.of(0x61, 0xc3))))).rejects.toThrow(FormatError);
    await expect(read(textSource(join(scratch, "missing.txt")))).rejects.toThrow(FormatError);
  });
});

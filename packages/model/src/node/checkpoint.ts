import { type FileHandle, open, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { type Backend, type FloatDType, FormatError, MobaError, type Tensor } from "@moba-js/tensor";
import { checkConfig, type ModelConfig, parameterShapes } from "../config.js";
import type { DataPosition } from "../packing.js";
import {
  headerLength,
  parseHeader,
  type StoredTensor,
  safetensorsPieces,
  type TensorEntry,
} from "../safetensors.js";
import { loadTensor, storeTensor } from "../storage.js";
import type { Moments, Trainer } from "../trainer.js";
import { Transformer } from "../transformer.js";
import { makeFolderAtomically, removeFolderAtomically, writeDurably } from "./atomic.js";

/** The most bytes of tensors in one file. */
const SHARD_BYTES = 2 ** 31;

/** What a checkpoint says of the run, beside model and optimizer. */
export interface RunState {
  /** Steps done. */
  readonly step: number;
  /** Where the next batch begins. */
  readonly position: DataPosition;
}

const encodeJson = (value: unknown): Uint8Array =>
  new TextEncoder().encode(`${JSON.stringify(value, null, 2)}\n`);

async function readJson(path: string): Promise<unknown> {
  const text = await readFile(path, "utf8").catch((cause: Error) => {
    throw new FormatError(path, cause.message);
  });
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new FormatError(path, `no JSON (${(cause as Error).message})`);
  }
}

/**
 * Writes tensors as `NAME.safetensors`, or as shards `NAME-00001-of-00002.safetensors` and an index
 * `NAME.safetensors.index.json` when they are more than 2 GiB: the layout of Hugging Face.
 */
async function writeTensors(
  folder: string,
  name: string,
  tensors: ReadonlyMap<string, Tensor>,
  shardBytes: number,
): Promise<void> {
  const shards: [string, Tensor][][] = [[]];
  let room = shardBytes;
  for (const [key, tensor] of tensors) {
    const bytes = tensor.storage.byteLength;
    if (bytes > room && shards[shards.length - 1].length > 0) {
      shards.push([]);
      room = shardBytes;
    }
    shards[shards.length - 1].push([key, tensor]);
    room -= bytes;
  }
  const number = (i: number) => String(i).padStart(5, "0");
  const files = shards.map((_, i) =>
    shards.length === 1
      ? `${name}.safetensors`
      : `${name}-${number(i + 1)}-of-${number(shards.length)}.safetensors`,
  );
  for (const [i, shard] of shards.entries()) {
    const stored = new Map<string, StoredTensor>();
    for (const [key, tensor] of shard) stored.set(key, await storeTensor(tensor));
    await writeDurably(join(folder, files[i]), safetensorsPieces(stored, { format: "pt" }));
  }
  if (shards.length === 1) return;
  const weightMap = Object.fromEntries(shards.flatMap((shard, i) => shard.map(([key]) => [key, files[i]])));
  await writeDurably(join(folder, `${name}.safetensors.index.json`), [encodeJson({ weight_map: weightMap })]);
}

/** The files that hold tensors under a name: one, or the shards that an index lists. */
async function tensorFiles(folder: string, name: string): Promise<string[]> {
  const entries = await readdir(folder).catch((cause: Error) => {
    throw new FormatError(folder, cause.message);
  });
  const index = `${name}.safetensors.index.json`;
  if (!entries.includes(index)) return [`${name}.safetensors`];
  const json = (await readJson(join(folder, index))) as { weight_map?: unknown } | null;
  const files = Object.values(json?.weight_map ?? {});
  // Names only: a path could lead out of the folder.
  if (files.length === 0 || !files.every((file) => typeof file === "string" && entries.includes(file))) {
    throw new FormatError(join(folder, index), "weight_map names no files of this folder");
  }
  return [...new Set(files as string[])];
}

/** Reads the tensors of a safetensors file one after the other, so that only one is in memory twice. */
async function* readTensors(path: string): AsyncIterable<readonly [string, StoredTensor]> {
  const handle = await open(path, "r").catch((cause: Error) => {
    throw new FormatError(path, cause.message);
  });
  try {
    const { size } = await handle.stat();
    const length = headerLength(path, await readBytes(handle, path, 0, Math.min(8, size)), size);
    const dataBegin = 8 + length;
    const { tensors } = parseHeader(path, await readBytes(handle, path, 8, length), size - dataBegin);
    for (const [name, { dtype, shape, begin, end }] of tensors as ReadonlyMap<string, TensorEntry>) {
      yield [name, { dtype, shape, bytes: await readBytes(handle, path, dataBegin + begin, end - begin) }];
    }
  } finally {
    await handle.close();
  }
}

async function readBytes(
  handle: FileHandle,
  path: string,
  position: number,
  length: number,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await handle.read(bytes, done, length - done, position + done);
    if (bytesRead === 0) throw new FormatError(path, "the file became shorter while it was read");
    done += bytesRead;
  }
  return bytes;
}

/** Tensors of a checkpoint with these names and shapes, on a backend. */
async function loadTensors(
  backend: Backend,
  folder: string,
  name: string,
  shapes: ReadonlyMap<string, readonly number[]>,
): Promise<Map<string, Tensor>> {
  const loaded = new Map<string, Tensor>();
  try {
    for (const file of await tensorFiles(folder, name)) {
      const path = join(folder, file);
      for await (const [key, stored] of readTensors(path)) {
        const shape = shapes.get(key);
        if (!shape) throw new FormatError(path, `tensor ${key} is none of this model's`);
        if (shape.join() !== stored.shape.join()) {
          throw new FormatError(path, `tensor ${key} is [${stored.shape}], expected [${shape}]`);
        }
        if (loaded.has(key)) throw new FormatError(path, `tensor ${key} is in two files`);
        loaded.set(key, loadTensor(backend, stored));
      }
    }
    for (const key of shapes.keys()) {
      if (!loaded.has(key)) throw new FormatError(folder, `${name}: tensor ${key} is missing`);
    }
    return loaded;
  } catch (error) {
    for (const tensor of loaded.values()) tensor.dispose();
    throw error;
  }
}

/**
 * Saves a model as `config.json` and `model.safetensors` (sharded when large) in a new folder, which appears whole or not at
 * all.
 */
export async function saveModel(model: Transformer, folder: string): Promise<void> {
  await makeFolderAtomically(folder, (unfinished) => writeModel(model, unfinished, SHARD_BYTES));
}

async function writeModel(model: Transformer, folder: string, shardBytes: number): Promise<void> {
  const parameters = new Map([...model.parameters].map(([name, { value }]) => [name, value]));
  await writeDurably(join(folder, "config.json"), [encodeJson(model.config)]);
  await writeTensors(folder, "model", parameters, shardBytes);
}

/**
 * The model that a folder holds.
 * @param options.dtype of the parameters. Default: as stored.
 * @param options.compute dtype of the computation. Default: that of the parameters.
 * @throws FormatError when a file is missing, broken, or not of this model
 */
export async function loadModel(
  backend: Backend,
  folder: string,
  options: { dtype?: FloatDType; compute?: FloatDType } = {},
): Promise<Transformer> {
  const config = await loadConfig(folder);
  const loaded = await loadTensors(backend, folder, "model", parameterShapes(config));
  const { dtype } = options;
  if (dtype) {
    for (const [name, tensor] of loaded) {
      loaded.set(name, backend.cast(tensor, dtype));
      tensor.dispose();
    }
  }
  return new Transformer(backend, config, loaded, options.compute);
}

/** The config of the model that a folder holds. @throws FormatError when it is no such config */
export async function loadConfig(folder: string): Promise<ModelConfig> {
  const path = join(folder, "config.json");
  try {
    return checkConfig((await readJson(path)) as ModelConfig);
  } catch (error) {
    throw error instanceof MobaError ? new FormatError(path, error.message) : error;
  }
}

/** Options of {@link saveCheckpoint}. */
export interface SaveOptions {
  /** Checkpoints of the run that stay, the new one included; older ones are removed. Default 2. */
  readonly keep?: number;
  /** The most bytes of tensors in one file. Default 2 GiB. */
  readonly shardBytes?: number;
}

const CHECKPOINT = /^step-(\d{8})$/;

/** The checkpoints of a run, oldest first. Unfinished ones are none. */
export async function listCheckpoints(run: string): Promise<string[]> {
  const names = await readdir(run).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return [];
    throw new FormatError(run, error.message);
  });
  return names
    .filter((name) => CHECKPOINT.test(name))
    .sort()
    .map((name) => join(run, name));
}

/**
 * Saves all that a run needs to go on: model (as {@link saveModel}), moments (`optimizer.safetensors`) and
 * `training.json`, in a new folder `step-00000042` of the run's folder, which appears whole or not at all.
 * @returns the new folder
 */
export async function saveCheckpoint(
  run: string,
  trainer: Trainer,
  position: DataPosition,
  options: SaveOptions = {},
): Promise<string> {
  const { keep = 2, shardBytes = SHARD_BYTES } = options;
  const state: RunState = { step: trainer.step, position };
  const folder = join(run, `step-${String(state.step).padStart(8, "0")}`);
  const moments = new Map(
    [...trainer.moments].flatMap(([name, { m, v }]) => [
      [`m.${name}`, m],
      [`v.${name}`, v],
    ]),
  );
  await makeFolderAtomically(folder, async (unfinished) => {
    await writeModel(trainer.model, unfinished, shardBytes);
    await writeTensors(unfinished, "optimizer", moments, shardBytes);
    await writeDurably(join(unfinished, "training.json"), [encodeJson(state)]);
  });
  for (const old of (await listCheckpoints(run)).slice(0, -keep)) await removeFolderAtomically(old);
  return folder;
}

/** AdamW's moments of a checkpoint. */
export async function loadMoments(
  backend: Backend,
  folder: string,
  config: ModelConfig,
): Promise<Map<string, Moments>> {
  const parameters = [...parameterShapes(config)];
  const shapes = parameters.flatMap(([name, shape]) => [
    [`m.${name}`, shape] as const,
    [`v.${name}`, shape] as const,
  ]);
  const loaded = await loadTensors(backend, folder, "optimizer", new Map(shapes));
  const moment = (name: string) => loaded.get(name) as Tensor;
  return new Map(parameters.map(([name]) => [name, { m: moment(`m.${name}`), v: moment(`v.${name}`) }]));
}

/** Step and data position of a checkpoint. @throws FormatError when they are missing or broken */
export async function loadRunState(folder: string): Promise<RunState> {
  const path = join(folder, "training.json");
  const { step, position } = ((await readJson(path)) ?? {}) as Partial<RunState>;
  const { epoch, document, token } = (position ?? {}) as Partial<DataPosition>;
  const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
  if (!isCount(step) || !isCount(epoch) || !isCount(document) || !isCount(token)) {
    throw new FormatError(path, "expected counts step and position.{epoch, document, token}");
  }
  return { step, position: { epoch, document, token } };
}

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { FormatError } from "@moba-js/tensor";
import { parquetWriteBuffer } from "hyparquet-writer";
import { afterAll, describe, expect, it } from "vitest";
import {
  type DocumentSource,
  headerLength,
  JsonTokenizer,
  parseSafetensors,
  type StoredTensor,
  safetensorsPieces,
} from "../src/index.js";
import { jsonlSource, loadTokenizer, parquetSource } from "../src/node.js";
import { freshSeed, TestRandom } from "./random.js";

const seed = freshSeed();
console.log(`formats: seed ${seed}`);

const scratch = mkdtempSync(join(tmpdir(), "moba-formats-"));
afterAll(() => rmSync(scratch, { recursive: true }));

const bytesOf = (text: string) => new TextEncoder().encode(text);
const textOf = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

const join2 = (...pieces: Uint8Array[]) => Uint8Array.from(pieces.flatMap((piece) => [...piece]));

/** A file with one to four of what happens to files: cut short, bytes changed, lost, doubled, or swapped for telling ones. */
function damaged(file: Uint8Array, random: TestRandom): Uint8Array {
  let bytes = file.slice();
  for (let i = random.int(1, 4); i > 0; i--) {
    const at = random.integer(bytes.length + 1);
    const length = random.int(1, 8);
    const telling = [0, 0x7f, 0x80, 0xff, 0x22, 0x7b, 0x7d, 0x2c, 0x5b, 0x39];
    switch (random.integer(6)) {
      case 0:
        bytes = bytes.slice(0, at);
        break;
      case 1:
        for (let j = at; j < Math.min(bytes.length, at + length); j++) bytes[j] = random.integer(256);
        break;
      case 2:
        for (let j = at; j < Math.min(bytes.length, at + length); j++) bytes[j] = random.pick(telling);
        break;
      case 3:
        bytes = join2(bytes.slice(0, at), bytes.slice(at + length));
        break;
      case 4:
        bytes = join2(bytes.slice(0, at), bytes.slice(Math.max(0, at - length)));
        break;
      default:
        if (bytes.length > 0) bytes[Math.min(at, bytes.length - 1)] ^= 1 << random.integer(8);
    }
  }
  return bytes;
}

/** Runs `read` on damaged files: each throws a FormatError or is read, and memory does not run away. */
async function fuzz(
  count: number,
  file: Uint8Array,
  random: TestRandom,
  read: (file: Uint8Array) => unknown,
): Promise<void> {
  let refused = 0;
  const before = process.memoryUsage();
  for (let i = 0; i < count; i++) {
    const bytes = damaged(file, random);
    try {
      await read(bytes);
    } catch (error) {
      if (!(error instanceof FormatError)) {
        console.log(`not a FormatError, for the file ${Buffer.from(bytes).toString("base64")}`);
        throw error;
      }
      refused += 1;
    }
  }
  globalThis.gc?.();
  const after = process.memoryUsage();
  const grown = (after.heapUsed + after.arrayBuffers - before.heapUsed - before.arrayBuffers) / 2 ** 20;
  console.log(`${count} files, ${refused} refused, ${grown.toFixed(0)} MiB more in use`);
  expect(refused).toBeGreaterThan(count / 20);
  expect(grown).toBeLessThan(200);
}

/** A safetensors file of a header as text. */
function fileOf(header: string | Uint8Array, dataLength: number, length?: bigint): Uint8Array {
  const json = typeof header === "string" ? bytesOf(header) : header;
  const first = new Uint8Array(8);
  new DataView(first.buffer).setBigUint64(0, length ?? BigInt(json.length), true);
  return join2(first, json, new Uint8Array(dataLength));
}

describe("safetensors", () => {
  const random = new TestRandom(seed);
  const tensors = new Map<string, StoredTensor>([
    [
      "weights",
      { dtype: "f32", shape: [2, 3], bytes: Uint8Array.from({ length: 24 }, () => random.integer(256)) },
    ],
    ["empty", { dtype: "bf16", shape: [0, 5], bytes: new Uint8Array(0) }],
    ['scalar ü " \\', { dtype: "i32", shape: [], bytes: Uint8Array.of(1, 2, 3, 4) }],
    ["__proto__", { dtype: "f16", shape: [3], bytes: Uint8Array.of(1, 2, 3, 4, 5, 6) }],
  ]);
  const file = join2(...safetensorsPieces(tensors, { note: "a text" }));

  it("are read as they were written", () => {
    const read = parseSafetensors("file", file);
    expect(read.metadata).toEqual({ note: "a text" });
    expect([...read.tensors]).toEqual([...tensors]);
    expect(Number(new DataView(file.buffer).getBigUint64(0, true)) % 8).toBe(0);
  });

  const entry = (begin: number, end: number, dtype = "F32", shape = "[1]") =>
    `{"dtype":"${dtype}","shape":${shape},"data_offsets":[${begin},${end}]}`;

  it.each<[string, Uint8Array]>([
    ["nothing", new Uint8Array(0)],
    ["7 bytes", new Uint8Array(7)],
    ["a header longer than the file", fileOf("{}", 0, 100n)],
    ["a header of 2^63 bytes", fileOf("{}", 0, 2n ** 63n)],
    ["a header that is no UTF-8", fileOf(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d), 0)],
    ["a header that is no JSON", fileOf("{]", 0)],
    ["a list for a header", fileOf("[]", 0)],
    ["white space before the header", fileOf(" {}", 0)],
    ["overlapping tensors", fileOf(`{"a":${entry(0, 4)},"b":${entry(2, 6)}}`, 6)],
    ["the same bytes twice", fileOf(`{"a":${entry(0, 4)},"b":${entry(0, 4)}}`, 4)],
    ["a gap", fileOf(`{"a":${entry(0, 4)},"b":${entry(8, 12)}}`, 12)],
    ["offsets out of the file", fileOf(`{"a":${entry(0, 4)}}`, 3)],
    ["bytes after the last tensor", fileOf(`{"a":${entry(0, 4)}}`, 5)],
    ["offsets the wrong way round", fileOf(`{"a":${entry(4, 0)}}`, 4)],
    ["a negative offset", fileOf(`{"a":${entry(-4, 0)}}`, 4)],
    ["an offset of 2^60", fileOf(`{"a":${entry(2 ** 60, 2 ** 60 + 4)}}`, 4)],
    ["a huge count", fileOf(`{"a":${entry(0, 4, "F32", "[4294967296,4294967296]")}}`, 4)],
    ["a count whose product wraps to 1", fileOf(`{"a":${entry(0, 4, "F32", "[4294967297,4294967295]")}}`, 4)],
    ["half an element", fileOf(`{"a":${entry(0, 4, "F32", "[0.5]")}}`, 4)],
    ["a dtype that is none", fileOf(`{"a":${entry(0, 4, "F33")}}`, 4)],
    ["a dtype of no use here", fileOf(`{"a":${entry(0, 8, "F64")}}`, 8)],
    ["a name twice", fileOf(`{"a":${entry(0, 4)},"a":${entry(0, 4)}}`, 4)],
    ["a name twice, once escaped", fileOf(`{"a":${entry(0, 4)},"\\u0061":${entry(0, 4)}}`, 4)],
    ["a field twice", fileOf(`{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4)],
    ["an unknown field", fileOf(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}`, 4)],
    ["metadata that is no text", fileOf(`{"__metadata__":{"a":1}}`, 0)],
    ["a tensor that is a number", fileOf(`{"a":1}`, 0)],
    ["deep nesting", fileOf(`{"a":${"[".repeat(100_000)}${"]".repeat(100_000)}}`, 0)],
    ["a long name without an end", fileOf(`{"${"x".repeat(1_000_000)}`, 0)],
  ])("with %s are refused", (_, bytes) => {
    expect(() => parseSafetensors("file", bytes)).toThrow(FormatError);
  });

  it("are refused by their length before anything is read", () => {
    expect(() => headerLength("file", fileOf("{}", 0, 100_000_001n), 2 ** 40)).toThrow(
      "header of 100000001 bytes",
    );
  });

  it("damaged at random are refused or read right", () =>
    fuzz(3000, file, random, (bytes) => {
      const { tensors, metadata } = parseSafetensors("file", bytes);
      // Read again without any checks.
      const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
      const json = JSON.parse(textOf(bytes.subarray(8, 8 + length))) as Record<
        string,
        Record<string, number[]>
      >;
      expect(
        Object.keys(json)
          .filter((name) => name !== "__metadata__")
          .sort(),
      ).toEqual([...tensors.keys()].sort());
      for (const [name, tensor] of tensors) {
        const [begin, end] = json[name].data_offsets;
        expect(tensor.shape).toEqual(json[name].shape);
        expect(tensor.bytes).toEqual(bytes.subarray(8 + length + begin, 8 + length + end));
      }
      expect(parseSafetensors("again", join2(...safetensorsPieces(tensors, metadata))).tensors).toEqual(
        tensors,
      );
    }));
});

const collect = async (source: DocumentSource, from = 0) => {
  const documents: string[] = [];
  for await (const text of source.documents(from)) documents.push(text);
  return documents;
};

describe("JSONL", () => {
  const path = join(scratch, "documents.jsonl");
  const texts = ["one", "", 'quotes " and \\', "two\nlines", "漢字 🐋"];
  const contents = texts.map((text, i) => JSON.stringify({ id: i, text, nested: { text: "no" } })).join("\n");
  const load = (bytes: string | Uint8Array, from = 0, field = "text") => {
    writeFileSync(path, bytes);
    return collect(jsonlSource(path, field), from);
  };

  it("is read line by line, from any document on", async () => {
    expect(await load(contents)).toEqual(texts);
    expect(await load(`\n${contents}\r\n \n`, 2)).toEqual(texts.slice(2));
    expect(await load('{"body":"x"}', 0, "body")).toEqual(["x"]);
  });

  it.each(["{", "[1]", "null", '"text"', '{"text": 3}', "{}"])(
    "with the line %s is refused by number",
    async (line) => {
      await expect(load(`{"text":"fine"}\n\n${line}\n`)).rejects.toThrow(`${path}:3`);
      await expect(load(`{"text":"fine"}\n\n${line}\n`)).rejects.toThrow(FormatError);
    },
  );

  it("damaged at random is refused or read right", () =>
    fuzz(700, bytesOf(contents), new TestRandom(seed + 1), async (bytes) => {
      const lines = textOf(bytes)
        .split("\n")
        .filter((line) => line.trim());
      expect(await load(bytes)).toEqual(lines.map((line) => (JSON.parse(line) as { text: string }).text));
    }));
});

describe("Parquet", () => {
  const path = join(scratch, "documents.parquet");
  const random = new TestRandom(seed + 2);
  const texts = Array.from(
    { length: 40 },
    (_, i) => `document ${i} ${"of words ".repeat(random.integer(8))}`,
  );
  const file = (codec: "SNAPPY" | "UNCOMPRESSED") =>
    new Uint8Array(
      parquetWriteBuffer({
        codec,
        rowGroupSize: 16,
        columnData: [
          { name: "text", data: texts, type: "STRING" },
          { name: "score", data: texts.map((_, i) => i / 2), type: "DOUBLE" },
        ],
      }),
    );
  const load = (bytes: Uint8Array, from = 0, column = "text") => {
    writeFileSync(path, bytes);
    return collect(parquetSource(path, column), from);
  };

  it("is read row group by row group, from any row on", async () => {
    for (const from of [0, 1, 15, 16, 33, 39, 40, 100])
      expect(await load(file("SNAPPY"), from)).toEqual(texts.slice(from));
    expect(await load(file("UNCOMPRESSED"))).toEqual(texts);
    const gzip = (bytes: Uint8Array) => new Uint8Array(gzipSync(bytes));
    const columns = [{ name: "text", data: texts, type: "STRING" as const }];
    const zipped = parquetWriteBuffer({ codec: "GZIP", compressors: { GZIP: gzip }, columnData: columns });
    expect(await load(new Uint8Array(zipped))).toEqual(texts);
    // Few different texts: the writer makes a dictionary.
    const repeated = Array.from({ length: 300 }, () => random.pick(["a", "bc", "", "漢字"]));
    const columnData = [{ name: "text", data: repeated, type: "STRING" as const }];
    expect(await load(new Uint8Array(parquetWriteBuffer({ columnData })))).toEqual(repeated);
  });

  it("without the column, or with something else in it, is refused", async () => {
    await expect(load(file("SNAPPY"), 0, "body")).rejects.toThrow(FormatError);
    await expect(load(file("SNAPPY"), 0, "score")).rejects.toThrow(FormatError);
    await expect(load(new Uint8Array(0))).rejects.toThrow(FormatError);
    await expect(collect(parquetSource(join(scratch, "missing.parquet")))).rejects.toThrow(FormatError);
  });

  it("with a null is refused", async () => {
    const columnData = [{ name: "text", data: ["a", null, "b"], type: "STRING" as const }];
    await expect(load(new Uint8Array(parquetWriteBuffer({ columnData })))).rejects.toThrow(
      "a row without text",
    );
  });

  it.each(["SNAPPY", "UNCOMPRESSED"] as const)("(%s) damaged at random is refused or read", (codec) =>
    fuzz(500, file(codec), random, async (bytes) => {
      const read = await load(bytes);
      expect(read.every((text) => typeof text === "string")).toBe(true);
    }),
  );
});

/** A byte-level BPE of a few merges, as GPT-2's tokenizer.json is made. */
function bpeTokenizer(): string {
  const vocabulary: Record<string, number> = {};
  const add = (token: string) => {
    vocabulary[token] ??= Object.keys(vocabulary).length;
  };
  // GPT-2's printable stand-ins for bytes.
  const printable = [...Array(94).keys()]
    .map((i) => i + 33)
    .concat(
      [...Array(12).keys()].map((i) => i + 161),
      [...Array(82).keys()].map((i) => i + 174),
    );
  let next = 256;
  for (let byte = 0; byte < 256; byte++) add(String.fromCharCode(printable.includes(byte) ? byte : next++));
  const merges = ["t h", "th e", "Ġ the", "i n", "Ġ w", "Ġw h"];
  for (const merge of merges) add(merge.replace(" ", ""));
  const end = Object.keys(vocabulary).length;
  return JSON.stringify({
    version: "1.0",
    added_tokens: [
      {
        id: end,
        content: "<|endoftext|>",
        special: true,
        single_word: false,
        lstrip: false,
        rstrip: false,
        normalized: false,
      },
    ],
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: null,
    decoder: { type: "ByteLevel" },
    model: { type: "BPE", dropout: null, unk_token: null, fuse_unk: false, vocab: vocabulary, merges },
  });
}

describe("tokenizer.json", () => {
  const json = bpeTokenizer();

  it("turns text into tokens and back", async () => {
    const path = join(scratch, "tokenizer.json");
    writeFileSync(path, json);
    const tokenizer = await loadTokenizer(path);
    expect(tokenizer.vocabulary).toBe(263);
    expect(tokenizer.end).toBe(262);
    // "the" is one token, " the" another, " wh" a third.
    expect([...tokenizer.encode("the the whale")].slice(0, 3)).toEqual([257, 258, 261]);
    for (const text of ["the the whale", "", " naïve 漢字 🐋\n\n  x"]) {
      expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
    }
    expect(tokenizer.decode([257, 262, 257])).toBe("thethe");
    await expect(loadTokenizer(path, { end: "<none>" })).rejects.toThrow("<none>");
    await expect(loadTokenizer(join(scratch, "missing.json"))).rejects.toThrow(FormatError);
  });

  it.each([
    "",
    "null",
    "[]",
    "{}",
    '{"model":{}}',
    '{"model":{"type":"BPE"}}',
    json.replaceAll("endoftext", "x"),
  ])("of other contents is refused", (contents) => {
    expect(() => new JsonTokenizer("file", contents)).toThrow(FormatError);
  });

  it("damaged at random is refused or works", () =>
    fuzz(800, bytesOf(json), new TestRandom(seed + 3), (bytes) => {
      const tokenizer = new JsonTokenizer("file", textOf(bytes));
      const tokens = tokenizer.encode("the whale, naïve");
      expect(tokens.every((token) => token >= 0 && token < tokenizer.vocabulary)).toBe(true);
      expect(typeof tokenizer.decode(tokens)).toBe("string");
    }));
});

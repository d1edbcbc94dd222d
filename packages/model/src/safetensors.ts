import { ArgumentError, bytesPerElement, type DType, FormatError, sizeOf } from "@moba-js/tensor";

/** One tensor as a file holds it. */
export interface StoredTensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** The elements, little-endian. */
  readonly bytes: Uint8Array;
}

/** Where a tensor lies in a file. */
export interface TensorEntry {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** First byte and the one after the last, counted from the end of the header. */
  readonly begin: number;
  readonly end: number;
}

/** The contents of a header. */
export interface SafetensorsHeader {
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  /** Free text by name. */
  readonly metadata: Readonly<Record<string, string>>;
}

const DTYPE_NAMES: Readonly<Record<DType, string>> = {
  f32: "F32",
  f16: "F16",
  bf16: "BF16",
  i32: "I32",
  u32: "U32",
};

/** The most bytes of a header, as in the format's own implementation. */
export const MAX_HEADER_BYTES = 100_000_000;

/**
 * The length of the header, from the first 8 bytes of a file.
 * @throws FormatError when it is longer than the file or {@link MAX_HEADER_BYTES}
 */
export function headerLength(source: string, first: Uint8Array, fileLength: number): number {
  if (first.length < 8)
    throw new FormatError(source, `${fileLength} bytes are too few for a safetensors file`);
  const length = new DataView(first.buffer, first.byteOffset).getBigUint64(0, true);
  const most = Math.min(MAX_HEADER_BYTES, fileLength - 8);
  if (length > BigInt(most))
    throw new FormatError(source, `header of ${length} bytes, at most ${most} expected`);
  return Number(length);
}

/**
 * Reads a safetensors header (https://huggingface.co/docs/safetensors), strictly: names are unique, and the tensors
 * fill the data without gaps and overlaps.
 * @param header the bytes between the length and the data
 * @param dataLength bytes after the header
 * @throws FormatError saying what is wrong
 */
export function parseHeader(source: string, header: Uint8Array, dataLength: number): SafetensorsHeader {
  const fail = (reason: string): never => {
    throw new FormatError(source, reason);
  };
  const json = parseJson(source, header);
  if (!isRecord(json)) return fail("the header is no JSON object");
  const { __metadata__: metadata = {}, ...rest } = json;
  if (!isRecord(metadata) || !Object.values(metadata).every((text) => typeof text === "string")) {
    return fail("__metadata__ is no map of texts");
  }
  const tensors = new Map<string, TensorEntry>();
  for (const [name, value] of Object.entries(rest)) tensors.set(name, parseEntry(source, name, value));
  let end = 0;
  for (const [name, entry] of [...tensors].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end)) {
    if (entry.begin !== end) fail(`tensor ${show(name)} begins at ${entry.begin}, expected ${end}`);
    end = entry.end;
  }
  if (end !== dataLength) fail(`tensors take ${end} bytes, the file has ${dataLength}`);
  return { tensors, metadata: metadata as Record<string, string> };
}

function parseEntry(source: string, name: string, value: unknown): TensorEntry {
  const fail = (reason: string): never => {
    throw new FormatError(source, `tensor ${show(name)}: ${reason}`);
  };
  if (!isRecord(value)) return fail("no JSON object");
  const { dtype: dtypeName, shape, data_offsets: offsets, ...rest } = value;
  for (const key of Object.keys(rest)) fail(`unknown field ${show(key)}`);
  const dtype = (Object.keys(DTYPE_NAMES) as DType[]).find((key) => DTYPE_NAMES[key] === dtypeName);
  if (!dtype)
    return fail(`dtype ${show(dtypeName)}, expected one of ${Object.values(DTYPE_NAMES).join(", ")}`);
  if (!isSizes(shape) || !Number.isSafeInteger(sizeOf(shape))) return fail("shape is no list of sizes");
  if (!isSizes(offsets) || offsets.length !== 2) return fail("data_offsets are no two sizes");
  const [begin, end] = offsets;
  const bytes = sizeOf(shape) * bytesPerElement(dtype);
  if (end - begin !== bytes)
    fail(`offsets ${begin} to ${end}, but ${bytes} bytes of ${dtypeName} [${shape}]`);
  return { dtype, shape, begin, end };
}

/** Parses JSON in UTF-8 strictly: no other encoding, no name twice in an object. */
function parseJson(source: string, bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new FormatError(source, "the header is no UTF-8");
  }
  // JSON.parse would accept white space before the object; the format does not.
  if (!text.startsWith("{")) throw new FormatError(source, "the header does not begin with {");
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new FormatError(source, `the header is no JSON (${(cause as Error).message})`);
  }
  checkUniqueNames(source, text);
  return json;
}

/** Checks that no object of a valid JSON text has a name twice: `JSON.parse` would keep the last silently. */
function checkUniqueNames(source: string, text: string): void {
  const objects: Set<string>[] = [];
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "{") objects.push(new Set());
    else if (text[i] === "}") objects.pop();
    if (text[i] !== '"') continue;
    const begin = i;
    for (i++; text[i] !== '"'; i++) if (text[i] === "\\") i++;
    let after = i + 1;
    while (" \t\r\n".includes(text[after])) after++;
    if (text[after] !== ":") continue; // a value, not a name
    const name = JSON.parse(text.slice(begin, i + 1)) as string;
    const names = objects[objects.length - 1];
    if (names.has(name)) throw new FormatError(source, `name ${show(name)} occurs twice`);
    names.add(name);
  }
}

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const isSizes = (value: unknown): value is number[] =>
  Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);

/** A value from a file, short enough for a message. */
function show(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/**
 * Reads a whole safetensors file. The tensors' bytes are views of the given ones.
 * @throws FormatError saying what is wrong
 */
export function parseSafetensors(
  source: string,
  file: Uint8Array,
): { tensors: Map<string, StoredTensor>; metadata: Readonly<Record<string, string>> } {
  const length = headerLength(source, file.subarray(0, 8), file.length);
  const data = file.subarray(8 + length);
  const { tensors, metadata } = parseHeader(source, file.subarray(8, 8 + length), data.length);
  const stored = [...tensors].map(
    ([name, { dtype, shape, begin, end }]) =>
      [name, { dtype, shape, bytes: data.subarray(begin, end) }] as const,
  );
  return { tensors: new Map(stored), metadata };
}

/**
 * A safetensors file in pieces, to be written one after the other: length and header, then each tensor's bytes.
 * @throws ArgumentError for a tensor that is called `__metadata__` or whose bytes do not fill its shape
 */
export function safetensorsPieces(
  tensors: ReadonlyMap<string, StoredTensor>,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array[] {
  const header: [string, unknown][] = [["__metadata__", metadata]];
  let begin = 0;
  for (const [name, { dtype, shape, bytes }] of tensors) {
    if (name === "__metadata__") throw new ArgumentError("tensors", name, "no tensor of this name");
    if (bytes.length !== sizeOf(shape) * bytesPerElement(dtype)) {
      throw new ArgumentError(`tensors.${name}`, bytes.length, `the bytes of ${dtype} [${shape}]`);
    }
    const end = begin + bytes.length;
    header.push([name, { dtype: DTYPE_NAMES[dtype], shape, data_offsets: [begin, end] }]);
    begin = end;
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(header)));
  // Spaces at the end keep the data aligned to 8 bytes.
  const padded = new Uint8Array(8 + Math.ceil(json.length / 8) * 8).fill(0x20);
  new DataView(padded.buffer).setBigUint64(0, BigInt(padded.length - 8), true);
  padded.set(json, 8);
  return [padded, ...[...tensors.values()].map(({ bytes }) => bytes)];
}

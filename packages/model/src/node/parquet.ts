import { FormatError } from "@moba-js/tensor";
import {
  type AsyncBuffer,
  asyncBufferFromFile,
  type ColumnMetaData,
  type FileMetaData,
  parquetMetadataAsync,
} from "hyparquet";
import { parquetHeader } from "hyparquet/src/column.js";
import { decompressPage } from "hyparquet/src/datapage.js";
import { compressors } from "hyparquet-compressors";
import type { DocumentSource } from "../packing.js";

/*
 * The library reads the metadata and the headers of pages, and decompresses. The values of the column are decoded here, since
 * the library's decoders trust the counts in a page: in a damaged file they run on without end.
 */

/** The most rows of a row group: a few bytes can stand for as many rows as they say. Real files have at most about a million. */
const MOST_ROWS = 2 ** 24;

/** The most bytes that a page may say it decompresses to. Pages of real files have about one million. */
const LARGEST_PAGE = 2 ** 28;

/**
 * The documents of a Parquet file, one a row, in a column of texts (FineWeb-Edu: `text`). Read row group by row group; groups
 * before the first wanted row are skipped. Reading throws FormatError when the file is broken or a row has no text.
 */
export const parquetSource = (path: string, column = "text"): DocumentSource => ({
  name: path,
  async *documents(from) {
    const file = await guard(path, () => asyncBufferFromFile(path));
    const metadata = await guard(path, () => parquetMetadataAsync(file));
    let begin = 0;
    for (const [index, { num_rows: count }] of metadata.row_groups.entries()) {
      const rows = Number(count);
      if (begin + rows > from) {
        const texts = await guard(path, () => readTexts(file, metadata, index, column));
        yield* texts.slice(Math.max(0, from - begin));
      }
      begin += rows;
    }
  },
});

/** Whatever a broken file leads to is a broken file. */
async function guard<T>(path: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (cause) {
    throw new FormatError(path, `no readable Parquet (${(cause as Error).message})`);
  }
}

/** The texts of a column in a row group. */
async function readTexts(
  file: AsyncBuffer,
  metadata: FileMetaData,
  index: number,
  column: string,
): Promise<string[]> {
  const { num_rows: count, columns } = metadata.row_groups[index];
  const chunk = columns.find(({ meta_data: data }) => data?.path_in_schema.join(".") === column)?.meta_data;
  const element = metadata.schema.find(({ name }) => name === column);
  if (!chunk || !element) throw new RangeError(`no column "${column}"`);
  if (chunk.type !== "BYTE_ARRAY" || element.repetition_type === "REPEATED") {
    throw new RangeError(`column "${column}" is not of texts`);
  }
  if (count < 0 || count > MOST_ROWS) throw new RangeError(`a row group of ${count} rows`);
  const bytes = await chunkBytes(file, chunk);
  const texts: string[] = [];
  let dictionary: string[] = [];
  const reader = { view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), offset: 0 };
  while (texts.length < count) {
    const header = parquetHeader(reader);
    const { compressed_page_size: stored, uncompressed_page_size: size } = header;
    if (!(stored >= 0 && reader.offset + stored <= bytes.length && size >= 0 && size <= LARGEST_PAGE)) {
      throw new RangeError(`a page of ${stored} bytes, ${size} when decompressed`);
    }
    const page = bytes.subarray(reader.offset, reader.offset + stored);
    reader.offset += stored;
    const { data_page_header: v1, data_page_header_v2: v2, dictionary_page_header: words } = header;
    if (words)
      dictionary = plainTexts(
        new Bytes(decompressPage(page, size, chunk.codec, compressors)),
        words.num_values,
      );
    const data = v1 ?? v2;
    if (!data) continue;
    if (!(data.num_values >= 0 && BigInt(texts.length + data.num_values) <= count)) {
      throw new RangeError(`${data.num_values} values in a page, ${texts.length} before, of ${count}`);
    }
    const optional = element.repetition_type === "OPTIONAL";
    let values: Bytes;
    if (v2) {
      // Levels come before the values, not compressed.
      const levels = v2.repetition_levels_byte_length + v2.definition_levels_byte_length;
      const packed = new Bytes(page);
      if (optional) checkDefined(new Bytes(packed.take(levels)), v2.num_values);
      else packed.take(levels);
      const rest = packed.take(packed.left);
      values = new Bytes(
        v2.is_compressed ? decompressPage(rest, size - levels, chunk.codec, compressors) : rest,
      );
    } else {
      values = new Bytes(decompressPage(page, size, chunk.codec, compressors));
      if (optional) checkDefined(new Bytes(values.take(values.int32())), data.num_values);
    }
    for (const text of pageTexts(values, data.encoding, data.num_values, dictionary)) texts.push(text);
  }
  return texts;
}

/** The bytes of a column's pages in a row group. */
async function chunkBytes(file: AsyncBuffer, column: ColumnMetaData): Promise<Uint8Array> {
  const { data_page_offset: data, dictionary_page_offset: dictionary, total_compressed_size: size } = column;
  const begin = Number(dictionary === undefined || dictionary > data ? data : dictionary);
  const end = begin + Number(size);
  if (!(begin >= 0 && end >= begin && end <= file.byteLength)) throw new RangeError("pages outside the file");
  return new Uint8Array(await file.slice(begin, end));
}

/** Bytes that are read from front to back, never past the end. */
class Bytes {
  #offset = 0;
  constructor(private readonly bytes: Uint8Array) {}

  get left(): number {
    return this.bytes.length - this.#offset;
  }

  take(count: number): Uint8Array {
    if (!(count >= 0 && count <= this.left)) throw new RangeError(`${count} bytes wanted, ${this.left} left`);
    this.#offset += count;
    return this.bytes.subarray(this.#offset - count, this.#offset);
  }

  int32(): number {
    const [a, b, c, d] = this.take(4);
    return a | (b << 8) | (c << 16) | (d << 24);
  }

  /** An unsigned number of 7 bits a byte, lowest first. */
  varint(): number {
    let value = 0;
    for (let shift = 0; shift < 35; shift += 7) {
      const [byte] = this.take(1);
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
    throw new RangeError("a number of more than 5 bytes");
  }
}

/** The texts of a data page. */
function pageTexts(values: Bytes, encoding: string, count: number, dictionary: readonly string[]): string[] {
  if (encoding === "PLAIN") return plainTexts(values, count);
  if (encoding !== "RLE_DICTIONARY" && encoding !== "PLAIN_DICTIONARY")
    throw new RangeError(`encoding ${encoding}`);
  const [width] = values.take(1);
  return Array.from(hybridNumbers(values, width, count), (index) => {
    if (index >= dictionary.length) throw new RangeError(`word ${index} of ${dictionary.length}`);
    return dictionary[index];
  });
}

/** Texts one after the other, each after its length. */
function plainTexts(values: Bytes, count: number): string[] {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const texts: string[] = [];
  while (texts.length < count) texts.push(decoder.decode(values.take(values.int32())));
  return texts;
}

/** Checks that no row is null: level 1 says that there is a value. */
function checkDefined(levels: Bytes, count: number): void {
  for (const level of hybridNumbers(levels, 1, count))
    if (level !== 1) throw new RangeError("a row without text");
}

/** Numbers of `width` bits in runs: a number repeated, or groups of 8 packed numbers. */
function* hybridNumbers(values: Bytes, width: number, count: number): Iterable<number> {
  if (width > 32) throw new RangeError(`numbers of ${width} bits`);
  for (let left = count; left > 0; ) {
    const header = values.varint();
    const run = Math.floor(header / 2);
    if (run === 0) throw new RangeError("an empty run");
    if (header % 2 === 0) {
      const number = values.take(Math.ceil(width / 8)).reduceRight((sum, byte) => sum * 256 + byte, 0);
      for (let i = Math.min(run, left); i > 0; i--) yield number;
      left -= run;
    } else {
      const packed = values.take(run * width);
      for (let i = 0; i < Math.min(run * 8, left); i++) {
        let number = 0;
        for (let bit = 0; bit < width; bit++) {
          const at = i * width + bit;
          number += ((packed[at >> 3] >> (at & 7)) & 1) * 2 ** bit;
        }
        yield number;
      }
      left -= run * 8;
    }
  }
}

import { FormatError } from "@moba-js/tensor";
import {
  asyncBufferFromFile,
  type Compressors,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
} from "hyparquet";
import { compressors } from "hyparquet-compressors";
import type { DocumentSource } from "../packing.js";

/** The most bytes that a page may say it decompresses to. Pages of real files have about one million. */
const LARGEST_PAGE = 2 ** 28;

/** The decompressors, guarded against pages that claim to be huge. */
const guarded: Compressors = Object.fromEntries(
  Object.entries(compressors).map(([codec, decompress]) => [
    codec,
    (input: Uint8Array, outputLength: number) => {
      if (!(outputLength >= 0 && outputLength <= LARGEST_PAGE))
        throw new RangeError(`a page of ${outputLength} bytes`);
      return decompress(input, outputLength);
    },
  ]),
);

/**
 * The documents of a Parquet file, one a row, in a column of texts (FineWeb-Edu: `text`). Read row group by row group; groups
 * before the first wanted row are skipped. Reading throws FormatError when the file is broken or a row has no text.
 */
export const parquetSource = (path: string, column = "text"): DocumentSource => ({
  name: path,
  async *documents(from) {
    const file = await guard(path, () => asyncBufferFromFile(path));
    const metadata = await guard(path, () => parquetMetadataAsync(file));
    checkColumn(path, metadata, column);
    let begin = 0;
    for (const group of metadata.row_groups) {
      const end = begin + Number(group.num_rows);
      const rowStart = Math.max(begin, from);
      if (rowStart < end) {
        const options = { file, metadata, columns: [column], rowStart, rowEnd: end, compressors: guarded };
        const rows = await guard(path, () => parquetReadObjects(options));
        if (rows.length !== end - rowStart) {
          throw new FormatError(
            path,
            `${rows.length} rows from row ${rowStart} on, expected ${end - rowStart}`,
          );
        }
        for (const [i, row] of rows.entries()) {
          const text: unknown = row[column];
          if (typeof text !== "string")
            throw new FormatError(path, `row ${rowStart + i}: no text in column "${column}"`);
          yield text;
        }
      }
      begin = end;
    }
  },
});

/** The library throws whatever a broken file leads it to. */
async function guard<T>(path: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (cause) {
    throw new FormatError(path, `no readable Parquet (${(cause as Error).message})`);
  }
}

/** Checks the counts that readers take memory by: a flat column has one value a row, and a page's bytes are in the file. */
function checkColumn(
  path: string,
  { row_groups: groups, num_rows: rows }: FileMetaData,
  column: string,
): void {
  let sum = 0n;
  for (const { num_rows: count, columns } of groups) {
    const metadata = columns.find(
      ({ meta_data: data }) => data?.path_in_schema.join(".") === column,
    )?.meta_data;
    if (!metadata) throw new FormatError(path, `no column "${column}"`);
    if (count < 0n || count > 2n ** 31n || metadata.num_values !== count) {
      throw new FormatError(path, `${metadata.num_values} values in column "${column}" for ${count} rows`);
    }
    sum += count;
  }
  if (sum !== rows) throw new FormatError(path, `${sum} rows in groups, ${rows} in the file`);
}

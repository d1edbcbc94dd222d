import { createReadStream } from "node:fs";
import { FormatError } from "@moba-js/tensor";
import type { DocumentSource } from "../packing.js";

/** Longer lines are refused, so that a file without line ends cannot fill the memory. In characters. */
const LONGEST_LINE = 2 ** 26;

/**
 * The lines of a UTF-8 file, line ends included, streamed.
 * @throws FormatError when the file cannot be read, is no UTF-8, or has a line of more than 2²⁶ characters
 */
export async function* readLines(path: string): AsyncIterable<string> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  try {
    for await (const chunk of createReadStream(path)) {
      rest += decoder.decode(chunk as Uint8Array, { stream: true });
      const lines = rest.split(/(?<=\n)/);
      rest = lines.pop() as string;
      if (rest.endsWith("\n")) {
        lines.push(rest);
        rest = "";
      }
      if (rest.length > LONGEST_LINE)
        throw new FormatError(path, `a line of more than ${LONGEST_LINE} characters`);
      yield* lines;
    }
    rest += decoder.decode();
  } catch (cause) {
    if (cause instanceof TypeError) throw new FormatError(path, "no UTF-8");
    const { code, message } = cause as NodeJS.ErrnoException;
    throw code ? new FormatError(path, message) : cause;
  }
  if (rest) yield rest;
}

/**
 * The documents of a plain text file: pieces of whole lines, of at least `pieceCharacters` each (but the last).
 */
export const textSource = (path: string, pieceCharacters = 8192): DocumentSource => ({
  name: path,
  async *documents(from) {
    let number = 0;
    let piece = "";
    for await (const line of readLines(path)) {
      piece += line;
      if (piece.length < pieceCharacters) continue;
      if (number++ >= from) yield piece;
      piece = "";
    }
    if (piece && number >= from) yield piece;
  },
});

/**
 * The documents of a JSONL file: one JSON object a line, the document in one of its fields. Lines of white space are left out.
 * Reading throws FormatError at a line that is no such object.
 */
export const jsonlSource = (path: string, field = "text"): DocumentSource => ({
  name: path,
  async *documents(from) {
    let lineNumber = 0;
    let number = 0;
    for await (const line of readLines(path)) {
      lineNumber += 1;
      if (line.trim() === "") continue;
      if (number++ >= from) yield parseLine(`${path}:${lineNumber}`, line, field);
    }
  },
});

function parseLine(at: string, line: string, field: string): string {
  let json: unknown;
  try {
    json = JSON.parse(line);
  } catch (cause) {
    throw new FormatError(at, `no JSON (${(cause as Error).message})`);
  }
  const text =
    typeof json === "object" && json !== null ? (json as Record<string, unknown>)[field] : undefined;
  if (typeof text !== "string") throw new FormatError(at, `no object with a text in field "${field}"`);
  return text;
}

/** Splits a source by document number: every `every`-th document is held out, the others are for training. */
export function holdOut(
  source: DocumentSource,
  every: number,
): { training: DocumentSource; heldOut: DocumentSource } {
  const part = (
    name: string,
    keep: (number: number) => boolean,
    toNumber: (index: number) => number,
  ): DocumentSource => ({
    name: `${source.name} (${name})`,
    async *documents(from) {
      let number = toNumber(from);
      for await (const text of source.documents(number)) if (keep(number++)) yield text;
    },
  });
  const isHeldOut = (number: number) => number % every === every - 1;
  return {
    training: part(
      "training",
      (number) => !isHeldOut(number),
      (index) => index + Math.floor(index / (every - 1)),
    ),
    heldOut: part("held out", isHeldOut, (index) => index * every),
  };
}

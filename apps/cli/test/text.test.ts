import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FormatError } from "@moba-js/tensor";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { invalidUtf8Offset, loadText, mobyDick, tokenize } from "../src/text.js";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "moba-text-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

const file = (name: string, content: string | Uint8Array): string => {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
};

describe("tokenize", () => {
  const words = (text: string) => tokenize(text).map(({ word }) => word);

  it("splits on what is no letter or digit of any script, and lower-cases", () => {
    expect(words("Call me Ishmael. Some years ago—never mind, 1851!").join(" ")).toBe(
      "call me ishmael some years ago never mind 1851",
    );
    expect(words("Ὀδύσσεια, Война и мир; naïve ÉCLAIR")).toEqual([
      "ὀδύσσεια",
      "война",
      "и",
      "мир",
      "naïve",
      "éclair",
    ]);
  });

  it("keeps apostrophes inside words, typographic or not, and treats composed and decomposed letters alike", () => {
    expect(words("'tis the whale's o’clock'")).toEqual(["tis", "the", "whale's", "o'clock"]);
    expect(words("cafe\u0301")).toEqual(words("caf\u00e9"));
  });

  it("says where each word stands", () => {
    const text = "A «B’c»\n d";
    expect(tokenize(text, 3).map(({ start, end, section }) => [text.slice(start, end), section])).toEqual([
      ["A", 3],
      ["B’c", 3],
      ["d", 3],
    ]);
  });
});

describe("Moby Dick", () => {
  it("is whole, in order, with chapters, without its table of contents", () => {
    const { sections, tokens } = mobyDick();
    expect(sections.length).toBe(138);
    expect(tokens.length).toBeGreaterThan(210_000);
    const loomings = sections.findIndex(({ title }) => title === "Chapter 1. Loomings");
    const opening = tokens.filter(({ section }) => section === loomings).slice(0, 3);
    expect(opening.map(({ word }) => word)).toEqual(["call", "me", "ishmael"]);
    expect(sections.at(-1)?.title).toBe("Epilogue");
  });
});

describe("invalidUtf8Offset", () => {
  /** Independent of the implementation: the first prefix that no continuation could mend. */
  const isValid = (bytes: Uint8Array): boolean => {
    try {
      new TextDecoder("utf-8", { fatal: true }).decode(bytes);
      return true;
    } catch {
      return false;
    }
  };

  it("finds the first ill-formed sequence of random bytes put into random text", () => {
    const bad = fc.constantFrom([0xff], [0xc0, 0xaf], [0xed, 0xa0, 0x80], [0xe2, 0x82], [0x80], [0xf5, 0x80]);
    fc.assert(
      fc.property(
        fc.string({ unit: "binary" }),
        bad,
        fc.string({ unit: "binary-ascii" }),
        (before, bytes, after) => {
          const prefix = Buffer.from(before);
          const whole = Buffer.concat([prefix, Buffer.from(bytes), Buffer.from(`.${after}`)]);
          expect(invalidUtf8Offset(whole)).toBe(prefix.length);
        },
      ),
    );
  });

  it("is −1 exactly for valid UTF-8, replacement characters of the text's own included", () => {
    expect(invalidUtf8Offset(Buffer.from("a \uFFFD b \uFFFD"))).toBe(-1);
    expect(invalidUtf8Offset(Buffer.concat([Buffer.from("\uFFFD"), Buffer.of(0xff)]))).toBe(3);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), (bytes) => {
        const offset = invalidUtf8Offset(bytes);
        expect(offset === -1).toBe(isValid(bytes));
        if (offset >= 0) expect(isValid(bytes.subarray(0, offset))).toBe(true);
      }),
    );
  });
});

describe("loadText", () => {
  const load = (path: string, words = 1) => loadText(path, words);

  it("reads UTF-8, with or without a byte order mark", async () => {
    const words = async (path: string) => (await load(path)).tokens.map(({ word }) => word);
    expect(await words(file("plain.txt", "Größe 🐋 matters"))).toEqual(["größe", "matters"]);
    expect(await words(file("bom.txt", "\uFEFFGröße"))).toEqual(["größe"]);
  });

  it.each([
    ["a missing file", () => join(folder, "nowhere.txt"), /nowhere\.txt: cannot be read \(ENOENT/],
    [
      "a directory",
      () => {
        mkdirSync(join(folder, "folder"), { recursive: true });
        return join(folder, "folder");
      },
      /folder: cannot be read \(EISDIR/,
    ],
    [
      "a file that is not UTF-8",
      () => file("latin1.txt", Buffer.concat([Buffer.from("schöne "), Buffer.of(0xfc), Buffer.from("ber")])),
      /latin1\.txt: is not UTF-8: byte 0xfc at offset 8/,
    ],
    ["a truncated file", () => file("cut.txt", Buffer.from("ab€").subarray(0, 4)), /byte 0xe2 at offset 2/],
    ["an empty file", () => file("empty.txt", ""), /empty\.txt: has 0 words, at least 1 are needed/],
    ["a file without words", () => file("marks.txt", "… — !"), /marks\.txt: has 0 words/],
  ])("refuses %s with its reason", async (_, path, message) => {
    const error = await load(path()).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(FormatError);
    expect((error as FormatError).message).toMatch(message);
  });

  it("refuses a text that is too short, and says how many words it needs", async () => {
    const path = file("short.txt", "call me ishmael");
    await expect(load(path, 4)).rejects.toThrow("short.txt: has 3 words, at least 4 are needed");
    expect((await load(path, 3)).tokens).toHaveLength(3);
  });

  it.skipIf(process.getuid?.() === 0)("refuses a file that it may not read", async () => {
    const path = file("secret.txt", "call me ishmael");
    chmodSync(path, 0);
    await expect(load(path)).rejects.toThrow("EACCES");
  });
});

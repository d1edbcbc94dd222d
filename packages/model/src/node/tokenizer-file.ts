import { readFile } from "node:fs/promises";
import { FormatError } from "@moba-js/tensor";
import { JsonTokenizer, type JsonTokenizerOptions } from "../tokenizer-json.js";

/** The tokenizer of a `tokenizer.json` file. @throws FormatError when it cannot be read or used */
export async function loadTokenizer(
  path: string,
  options: JsonTokenizerOptions = {},
): Promise<JsonTokenizer> {
  const json = await readFile(path, "utf8").catch((cause: Error) => {
    throw new FormatError(path, cause.message);
  });
  return new JsonTokenizer(path, json, options);
}

import { access } from "node:fs/promises";
import { dirname, join } from "node:path";
import { ByteTokenizer, type Tokenizer, type Transformer } from "@moba-js/model";
import { listCheckpoints, loadModel, loadTokenizer } from "@moba-js/model/node";
import type { Backend } from "@moba-js/tensor";

/** The tokenizer of a run stays beside its checkpoints under this name; without one, tokens are bytes. */
export const TOKENIZER_FILE = "tokenizer.json";

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

/**
 * The model of a run (its newest checkpoint), of a checkpoint or of a model folder, with its tokenizer.
 * @throws FormatError when files are missing or broken
 */
export async function openModel(
  backend: Backend,
  folder: string,
): Promise<{ model: Transformer; tokenizer: Tokenizer; source: string }> {
  const source = (await listCheckpoints(folder)).at(-1) ?? folder;
  const model = await loadModel(backend, source);
  for (const place of [source, dirname(source)]) {
    const path = join(place, TOKENIZER_FILE);
    if (await exists(path)) return { model, tokenizer: await loadTokenizer(path), source };
  }
  return { model, tokenizer: new ByteTokenizer(), source };
}

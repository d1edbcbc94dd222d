import { generate } from "@moba-js/model";
import type { Backend } from "@moba-js/tensor";
import { openModel } from "../model-folder.js";
import type { Output } from "../output.js";

/** Options of `moba generate`. */
export interface GenerateCommandOptions {
  readonly model: string;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly topP: number;
  readonly stop?: string[];
  readonly seed: number;
}

/**
 * `moba generate`: continues a prompt; text is printed as it comes.
 * @throws FormatError when the folder holds no model.
 */
export async function generateCommand(
  backend: Backend,
  prompt: string,
  options: GenerateCommandOptions,
  output: Output,
): Promise<void> {
  const { maxTokens, temperature, topP, stop = [], seed } = options;
  const { model, tokenizer, source } = await openModel(backend, options.model);
  let continuation = "";
  let finished: string | undefined;
  if (!output.json) output.stdout.write(prompt);
  for await (const piece of generate(model, tokenizer, [prompt], {
    maxTokens,
    temperature,
    topP,
    stop,
    seed,
  })) {
    continuation += piece.text;
    finished = piece.finished;
    if (!output.json) output.stdout.write(piece.text);
  }
  output.print();
  output.result({ model: source, prompt, continuation, finished });
  model.dispose();
}

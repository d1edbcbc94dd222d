import { rename, rm, stat, writeFile } from "node:fs/promises";
import { FormatError } from "@moba-js/tensor";

/**
 * Writes a file whole or not at all. The draft beside it is made first, so that a place that cannot be written shows before
 * the content is worked out.
 * @throws FormatError when the file cannot be written, or what `produce` throws.
 */
export async function writeAtomically(path: string, produce: () => Promise<string>): Promise<void> {
  const refuse = (reason: string): never => {
    throw new FormatError(path, `cannot be written (${reason})`);
  };
  const refuseBecause = (error: Error): never => refuse(error.message);
  const existing = await stat(path).catch(() => undefined);
  if (existing?.isDirectory()) refuse("is a directory");
  const draft = `${path}.${process.pid}.tmp`;
  try {
    await writeFile(draft, "").catch(refuseBecause);
    const content = await produce();
    await writeFile(draft, content).catch(refuseBecause);
    await rename(draft, path).catch(refuseBecause);
  } finally {
    await rm(draft, { force: true });
  }
}

import { mkdir, open, readdir, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";

/** Names of unfinished folders begin so; whoever reads a parent folder leaves them out. */
const UNFINISHED = ".unfinished-";

/** Waits until a file's or folder's contents are on the disk. */
async function sync(path: string): Promise<void> {
  const handle = await open(path, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Writes a file in pieces and waits until it is on the disk. */
export async function writeDurably(path: string, pieces: Iterable<Uint8Array>): Promise<void> {
  const handle = await open(path, "w");
  try {
    for (const piece of pieces) await handle.writeFile(piece);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Makes a folder that appears whole or not at all, whenever the process or the machine stops: its files are written into a
 * folder of another name, synced, and the folder is renamed last. Left-overs of earlier attempts are removed.
 * @param fill writes the files (with {@link writeDurably}) into the folder it is given
 */
export async function makeFolderAtomically(
  path: string,
  fill: (folder: string) => Promise<void>,
): Promise<void> {
  const parent = dirname(path);
  await mkdir(parent, { recursive: true });
  for (const name of await readdir(parent)) {
    if (name.startsWith(UNFINISHED)) await rm(join(parent, name), { recursive: true });
  }
  const folder = join(parent, `${UNFINISHED}${basename(path)}`);
  await mkdir(folder);
  await fill(folder);
  await sync(folder);
  await rename(folder, path);
  await sync(parent);
}

/** Removes a folder so that it is gone whole or not at all for whoever reads its parent. */
export async function removeFolderAtomically(path: string): Promise<void> {
  const leftOver = join(dirname(path), `${UNFINISHED}removed-${basename(path)}`);
  await rename(path, leftOver);
  await rm(leftOver, { recursive: true });
}

/** Replaces a file so that a reader sees the old contents or the new, whole. */
export async function replaceFile(path: string, contents: string): Promise<void> {
  const next = `${path}.next`;
  await writeDurably(next, [new TextEncoder().encode(contents)]);
  await rename(next, path);
}

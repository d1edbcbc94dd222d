/** @throws Error when the working tree in `dir` has changes that are not committed. */
export function requireCleanTree(dir: string): void;

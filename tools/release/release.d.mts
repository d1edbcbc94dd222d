/** @throws Error when the working tree in `dir` has changes that are not committed. */
export function requireCleanTree(dir: string): void;
/** What `npm publish` is told of provenance. @throws Error where it is possible, and the repository has no public address */
export function provenance(dir: string, env?: Record<string, string | undefined>): string[];

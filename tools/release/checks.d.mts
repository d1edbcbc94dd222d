/** Checks of packed packages; each returns what is wrong, one line a problem. */
export function checkExports(tarball: string): Promise<string[]>;
export function checkFiles(dir: string): string[];
export function checkImports(dir: string): string[];
export function checkSize(tarball: string, dir: string, budgets?: Record<string, Budget>): Promise<string[]>;

/** The most bytes that a package may have: packed, and its bundled and minified entry after gzip. */
export interface Budget {
  packed: number;
  entry?: number;
}

/** The report on the public API of the package in `dir`. */
export function apiReport(dir: string): string;
/** What is wrong with the reviewed report on it in `file`; "" where nothing is. */
export function checkApi(dir: string, file?: string): string;

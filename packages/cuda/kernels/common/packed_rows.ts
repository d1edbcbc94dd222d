/** Bytes of a row of 64 or 128 channels, as packed_rows.cuh packs it. */
export const packedRowBytes = (headDim: number): number => headDim + 32;
/** Bytes of a row's steps. */
export const PACKED_STEP_BYTES = 4;
/** Bytes of a row's `PackedNote` beside it: a row of 64 channels has its own in spare words. */
export const packedNoteBytes = (headDim: number): number => (headDim === 64 ? 0 : 8);
/** Threads that take a row of them together. */
export const PACKED_ROW_THREADS = 4;
/** Whether rows of slots of such elements are packed: f16 has three bits more than the ten that remain. */
export const packsRows = (dtype: string): boolean => dtype === "bf16";

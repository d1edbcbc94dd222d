/** Bytes of a row of 64 or 128 channels, as packed_rows.cuh packs it. */
export const packedRowBytes = (headDim: number): number => headDim + 32;
/** Bytes of a row's steps, and of a `PackedNote`. */
export const [PACKED_STEP_BYTES, PACKED_NOTE_BYTES] = [4, 8];
/** Threads that take a row of them together. */
export const PACKED_ROW_THREADS = 4;
/** Whether rows of slots of such elements are packed: f16 has three bits more than the ten that remain. */
export const packsRows = (dtype: string): boolean => dtype === "bf16";

import type { Backend } from "@moba-js/tensor";

/** What some backends can tell beyond the contract: see `CudaBackend`. */
export interface MeasuredBackend extends Backend {
  profile(run: () => void): Promise<readonly { readonly name: string; readonly milliseconds: number }[]>;
  capture(run: () => void): { replay(): void; dispose(): void };
  deviceMemory(): { readonly usedBytes: number; readonly peakUsedBytes: number };
  resetPeakMemory(): void;
}

/** Whether a backend measures its kernels and memory. */
export const isMeasured = (backend: Backend): backend is MeasuredBackend =>
  ["profile", "capture", "deviceMemory", "resetPeakMemory"].every((method) => method in backend);

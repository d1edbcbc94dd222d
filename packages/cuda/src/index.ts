import { CudaBackend } from "./backend.js";
import type { DeviceOptions } from "./device.js";
import { type DeviceProperties, deviceErrors, loadAddon } from "./native.js";

export { CudaBackend } from "./backend.js";
export type { DeviceOptions, KernelPath, LaunchTime } from "./device.js";
export type { Graph } from "./graph.js";
export type { PoolReport } from "./memory-pool.js";
export type { DeviceProperties } from "./native.js";
export type { CapturedDecode, PagedCache, PagedCacheOptions, PagedDecodeOptions } from "./paged-cache.js";

/**
 * Opens a CUDA device. Dispose the backend (or declare it with `using`) when done. Each thread opens its own.
 *
 * @throws DeviceError where there is no addon, NVIDIA driver or such device, saying which; ArgumentError for options that
 * are out of range.
 */
export async function openCuda(options: DeviceOptions = {}): Promise<CudaBackend> {
  return new CudaBackend(options);
}

/**
 * The CUDA devices that the driver shows, in its order: the index is the `device` of {@link openCuda}.
 * @throws DeviceError where there is no addon or NVIDIA driver.
 */
export function cudaDevices(): DeviceProperties[] {
  const addon = loadAddon();
  return deviceErrors(() => addon.devices().devices);
}

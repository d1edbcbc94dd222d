export { type OpenWebGpuOptions, openWebGpu, WebGpuBackend, type WebGpuOptions } from "./backend.js";
export { type DeviceOptions, openDevice, TIERS, type Tier } from "./device.js";
export type { PoolReport } from "./memory.js";
export type { CompileProgress } from "./pipelines.js";

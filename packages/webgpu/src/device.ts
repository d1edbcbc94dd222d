/// <reference types="@webgpu/types" />
import { ArgumentError, DeviceError } from "@moba-js/tensor";

/**
 * What a backend makes use of, each tier with what the ones before it have: nothing but WebGPU itself; subgroups; 16-bit floats in
 * shaders; matrix products of subgroups, of 16-bit floats (tensor cores, `chromium-experimental-subgroup-matrix`).
 */
export type Tier = "plain" | "subgroups" | "shader-f16" | "subgroup-matrix";

/** Every tier, the least first. */
export const TIERS: readonly Tier[] = ["plain", "subgroups", "shader-f16", "subgroup-matrix"];

/** The device feature that each tier adds. */
const FEATURES: Readonly<Record<Tier, string | undefined>> = {
  plain: undefined,
  subgroups: "subgroups",
  "shader-f16": "shader-f16",
  "subgroup-matrix": "chromium-experimental-subgroup-matrix",
};

/** Limits that are asked for as high as the adapter has them. */
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
] as const;

/** Options of {@link openDevice}. */
export interface DeviceOptions {
  /** What to make use of. Default: the highest tier that the adapter reaches. */
  tier?: Tier;
  /** Default: `"high-performance"`. */
  powerPreference?: GPUPowerPreference;
  /** In Node: options for Dawn's `create`, such as `"enable-dawn-features=allow_unsafe_apis"`. Default: what the tier needs. */
  dawnOptions?: readonly string[];
}

/** What Dawn's package for Node exports. */
interface DawnModule {
  create(options: string[]): GPU;
}

/** Dawn's entry points of Node: collected while a device lives, they would take it with them. */
const entryPoints: GPU[] = [];

/** Dawn's toggles: no kernel here reads workgroup memory that it has not written, so it need not be zeroed first. */
const TOGGLES = "disable_workgroup_init";
/** Those that the tiers from `shader-f16` on need as well: on NVIDIA, Dawn hides its 16-bit floats. */
const F16_TOGGLES = "allow_unsafe_apis,vulkan_enable_f16_on_nvidia";

/**
 * Why Dawn would find no Vulkan on Linux, if so. Asked first, since Dawn itself complains on the process's standard error. The
 * loader is no addon of Node's, so loading it as one fails in any case: what counts is whether it was found.
 */
function vulkanLacks(): string | undefined {
  const { process } = globalThis as unknown as { process?: NodeProcess };
  if (process?.platform !== "linux") return undefined;
  try {
    process.dlopen({ exports: {} }, "libvulkan.so.1");
    return undefined;
  } catch (error) {
    const { message } = error as Error;
    return message.includes("cannot open shared object file") ? message : undefined;
  }
}

/** What is needed of Node's `process`. */
interface NodeProcess {
  readonly platform: string;
  dlopen(module: { exports: object }, file: string): void;
}

/** WebGPU's entry point here: the browser's or Deno's own, or in Node that of the package `webgpu`. */
async function findGpu({ tier, dawnOptions }: DeviceOptions): Promise<GPU> {
  const { navigator } = globalThis as { navigator?: { gpu?: GPU } };
  if (navigator?.gpu) return navigator.gpu;
  const isF16 = tier === "shader-f16" || tier === "subgroup-matrix";
  const toggles = isF16 ? [TOGGLES, F16_TOGGLES] : [TOGGLES];
  const options = [...(dawnOptions ?? [`enable-dawn-features=${toggles.join()}`])];
  const name: string = "webgpu"; // not a literal, so that bundlers for browsers leave it alone
  const reason = vulkanLacks();
  if (reason) throw new DeviceError("webgpu", `no Vulkan loader is installed (${reason})`);
  let dawn: DawnModule;
  try {
    dawn = (await import(/* @vite-ignore */ /* webpackIgnore: true */ name)) as DawnModule;
  } catch (error) {
    const reason = error instanceof Error ? error.message.split("\n")[0] : String(error);
    throw new DeviceError(
      "webgpu",
      `there is no WebGPU here; in Node, install the package webgpu (${reason})`,
    );
  }
  const gpu = dawn.create(options);
  entryPoints.push(gpu);
  return gpu;
}

/** A shape of matrix products, as `chromium-experimental-subgroup-matrix` lists them. */
interface MatrixConfig {
  readonly componentType: string;
  readonly resultComponentType: string;
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

/** Whether an adapter's subgroups, of 32 threads, multiply the matrices that the kernels are made of. */
function hasMatrices(info: GPUAdapterInfo | undefined): boolean {
  const { subgroupMatrixConfigs = [] } = (info ?? {}) as { subgroupMatrixConfigs?: Iterable<MatrixConfig> };
  return (
    info?.subgroupMinSize === 32 &&
    info.subgroupMaxSize === 32 &&
    [...subgroupMatrixConfigs].some(
      ({ componentType, resultComponentType, M, N, K }) =>
        componentType === "f16" && resultComponentType === "f32" && M === 16 && N === 16 && K === 16,
    )
  );
}

/** Devices whose adapter is known to have the matrices: Dawn's devices in Node do not tell. */
const matrixDevices = new WeakSet<GPUDevice>();

/** The tier that was asked for, or else the highest that is reached: all features are there, and for the last one the matrices. */
function chooseTier(features: ReadonlySet<string>, matrices: boolean, wanted?: Tier): Tier {
  const lacking = TIERS.find((tier) => {
    const feature = FEATURES[tier];
    return (feature && !features.has(feature)) || (tier === "subgroup-matrix" && !matrices);
  });
  const reached = lacking ? TIERS.slice(0, TIERS.indexOf(lacking)) : TIERS;
  if (wanted && !reached.includes(wanted)) {
    throw new DeviceError(
      "webgpu",
      `the tier ${wanted} is not reached here: ${reached.at(-1)} is the highest`,
    );
  }
  return wanted ?? (reached.at(-1) as Tier);
}

/**
 * The tier of a backend on a device: the one that was asked for, or else the highest.
 * @throws DeviceError when the device does not reach the one that was asked for.
 */
export const tierOf = (device: GPUDevice, wanted?: Tier): Tier =>
  chooseTier(device.features, matrixDevices.has(device) || hasMatrices(device.adapterInfo), wanted);

/** @throws ArgumentError for what is no tier. */
export function checkTier(tier: Tier | undefined): void {
  if (tier !== undefined && !TIERS.includes(tier)) {
    throw new ArgumentError("tier", tier, `one of ${TIERS.join(", ")}`);
  }
}

/**
 * Opens a WebGPU device with the features of a tier and the adapter's own limits.
 * @throws DeviceError when there is no WebGPU, no adapter, when the adapter does not reach the tier that was asked for or gives no
 *   device; ArgumentError for an unknown tier.
 */
export async function openDevice(options: DeviceOptions = {}): Promise<GPUDevice> {
  checkTier(options.tier);
  const gpu = await findGpu(options);
  const { powerPreference = "high-performance" } = options;
  const adapter = await gpu.requestAdapter({ powerPreference }).catch(() => null);
  if (!adapter) throw new DeviceError("webgpu", "WebGPU finds no adapter here");
  const matrices = hasMatrices(adapter.info);
  const tier = chooseTier(adapter.features, matrices, options.tier);
  const wanted = TIERS.slice(0, TIERS.indexOf(tier) + 1).flatMap((each) => FEATURES[each] ?? []);
  if (adapter.features.has("timestamp-query")) wanted.push("timestamp-query");
  try {
    const device = await adapter.requestDevice({
      requiredFeatures: wanted as GPUFeatureName[],
      requiredLimits: Object.fromEntries(LIMITS.map((limit) => [limit, adapter.limits[limit]])),
    });
    if (matrices) matrixDevices.add(device);
    return device;
  } catch (error) {
    throw new DeviceError("webgpu", `the adapter gives no device (${(error as Error).message})`);
  }
}

/** The device in words. */
export function describeDevice({ adapterInfo }: GPUDevice): string {
  const { vendor, architecture, device, description } = adapterInfo ?? {};
  return [description || device || "WebGPU device", [vendor, architecture].filter(Boolean).join(" ")]
    .filter(Boolean)
    .join(", ");
}

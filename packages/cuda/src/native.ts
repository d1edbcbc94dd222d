import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { DeviceError } from "@moba-js/tensor";

/** What the driver says of a device. */
export interface DeviceProperties {
  readonly name: string;
  /** Ten times the major plus the minor number: 90 for 9.0. */
  readonly computeCapability: number;
  readonly multiprocessors: number;
  readonly l2Bytes: number;
  /** The most shared memory that a block may have, when it asks for it. */
  readonly sharedBytesPerBlock: number;
  readonly memoryBytes: number;
}

/** A handle of the driver. */
export type Handle = number;

/** A matrix product with its algorithm. */
export interface NativeProduct {
  readonly plan: Handle;
  readonly workspaceBytes: number;
}

/** A device of the addon; see `addon/device.h`. Its errors carry the driver's name for them, `cudaName`. */
export interface NativeDevice {
  allocate(bytes: number): number;
  free(pointers: readonly number[]): void;
  fill(pointer: number, bytes: number, byte: number): void;
  copy(target: number, source: number, bytes: number): void;
  memoryInfo(): { free: number; total: number };
  upload(pointer: number, data: ArrayBufferView): void;
  uploadNow(pointer: number, data: ArrayBufferView): void;
  download(pointer: number, bytes: number): Promise<ArrayBuffer>;
  synchronize(): Promise<void>;
  loadModule(image: Uint8Array): Handle;
  getFunction(module: Handle, name: string): Handle;
  allowShared(kernel: Handle, bytes: number): void;
  /** Where the next launch is described: `LaunchBlock` of `addon/device.h`. */
  launchMemory(): ArrayBuffer;
  launch(kernel: Handle, parameterBytes: number): void;
  tensorMap(
    pointer: number,
    type: number,
    dims: readonly number[],
    stridesBytes: readonly number[],
    box: readonly number[],
    swizzle: number,
  ): Uint8Array;
  loadBlas(library: string): number;
  planProduct(
    rows: number,
    columns: number,
    inner: number,
    transposeA: boolean,
    transposeB: boolean,
    type: number,
    outType: number,
    mostWorkspaceBytes: number,
  ): NativeProduct | undefined;
  runProduct(plan: Handle, a: number, b: number, addend: number, out: number, workspace: number): boolean;
  createEvent(): Handle;
  recordEvent(event: Handle): void;
  elapsedTime(start: Handle, end: Handle): number;
  destroyEvent(event: Handle): void;
  beginBeside(): void;
  endBeside(): void;
  joinBeside(): void;
  beginCapture(): void;
  endCapture(keep: boolean): Handle;
  launchGraph(graph: Handle): void;
  destroyGraph(graph: Handle): void;
  close(): void;
}

/** The addon. */
export interface Addon {
  devices(): { driverVersion: number; devices: DeviceProperties[] };
  Device: new (ordinal: number) => NativeDevice;
}

/** The package's `dist` folder, from `src` and from the bundle alike. */
const dist = new URL("../dist/", import.meta.url);

const platform = `${process.platform}-${process.arch}`;
const requireFrom = createRequire(import.meta.url);

/** A file that the build makes: in `dist` after a build from source, else in the package made for this platform. */
function builtFile(path: string): string {
  const own = fileURLToPath(new URL(path, dist));
  if (existsSync(own)) return own;
  try {
    return join(dirname(requireFrom.resolve(`@moba-js/cuda-${platform}/package.json`)), path);
  } catch {
    return own; // there is no such package: whoever reads the file says that it is missing
  }
}

/** The file of a module of kernels. */
export const kernelFile = (name: string): string => builtFile(`kernels/${name}.fatbin`);

let addon: Addon | undefined;

/**
 * The addon of this platform, loaded on first use.
 * @throws DeviceError when it is not there or does not load.
 */
export function loadAddon(): Addon {
  if (addon) return addon;
  const file = builtFile(`addon/${platform}.node`);
  if (!existsSync(file)) {
    throw new DeviceError(
      "cuda",
      `no addon for ${platform}: ${file} is missing; build it with "npm run build" in packages/cuda (Linux, g++, make and Python 3)`,
    );
  }
  try {
    addon = requireFrom(file) as Addon;
  } catch (cause) {
    throw new DeviceError("cuda", `the addon does not load (${(cause as Error).message})`);
  }
  return addon;
}

/** An error of the addon as a {@link DeviceError} with the driver's words; any other error as it is. */
export function toDeviceError(error: unknown): unknown {
  return error instanceof Error && "cudaName" in error ? new DeviceError("cuda", error.message) : error;
}

/** Runs calls of the addon, with its errors as {@link DeviceError}s. */
export function deviceErrors<T>(calls: () => T): T {
  try {
    return calls();
  } catch (error) {
    throw toDeviceError(error);
  }
}

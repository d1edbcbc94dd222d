import { DeviceError } from "@moba-js/tensor";

// What bundlers for browsers take instead of the package.

const unavailable = () => new DeviceError("cuda", "it needs Node on Linux; this is a bundle for browsers");

/** @throws DeviceError always. */
export async function openCuda(): Promise<never> {
  throw unavailable();
}

/** @throws DeviceError always. */
export function cudaDevices(): never {
  throw unavailable();
}

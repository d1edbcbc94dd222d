import { LeakError } from "./errors.js";
import type { DeviceMemory } from "./memory.js";

/**
 * Runs `body` and checks that it disposes every tensor it makes, other work on the backend being none meanwhile.
 * @returns what `body` returns; a tensor in it counts as a leak.
 * @throws LeakError listing each tensor left, with its shape, dtype and the stack where it was made; or what `body` throws.
 */
export async function leakCheck<T>(backend: DeviceMemory, body: () => T | Promise<T>): Promise<T> {
  const before = new Set(backend.liveTensors());
  const { traceTensors } = backend.debug;
  backend.debug.traceTensors = true;
  try {
    const result = await body();
    const leaks = backend.liveTensors().filter((tensor) => !before.has(tensor));
    if (leaks.length > 0)
      throw new LeakError(
        backend.name,
        leaks.map(({ description }) => description),
      );
    return result;
  } finally {
    backend.debug.traceTensors = traceTensors;
  }
}

import { ReferenceBackend } from "@moba-js/reference";
import { ArgumentError, type Backend, DeviceError } from "@moba-js/tensor";

/** The backends that {@link openBackend} knows. */
export type BackendName = "cuda" | "webgpu" | "cpu";

/** A backend that may open here. */
interface Candidate {
  readonly name: BackendName;
  /** @throws DeviceError saying what is missing. */
  open(): Promise<Backend>;
}

/** Every backend, the fastest first. */
const CANDIDATES: readonly Candidate[] = [
  { name: "cuda", open: async () => (await import("@moba-js/cuda")).openCuda() },
  { name: "webgpu", open: async () => (await import("@moba-js/webgpu")).openWebGpu() },
  { name: "cpu", open: async () => new ReferenceBackend() },
];

/** What {@link probeBackends} found out about one backend. */
export type BackendProbe =
  | { readonly name: BackendName; readonly available: true /** In words. */; readonly device: string }
  | { readonly name: BackendName; readonly available: false /** Why not. */; readonly reason: string };

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/**
 * Opens a backend: the named one, or the fastest that opens here. Dispose it (or declare it with `using`) when done.
 *
 * @throws ArgumentError for a name that is no backend's; DeviceError with the reasons when none opens.
 */
export async function openBackend(name?: BackendName): Promise<Backend> {
  const candidates = CANDIDATES.filter((candidate) => name === undefined || candidate.name === name);
  if (candidates.length === 0) {
    const names = CANDIDATES.map((candidate) => candidate.name).join(", ");
    throw new ArgumentError("backend", name, `one of ${names}`);
  }
  const reasons: string[] = [];
  for (const candidate of candidates) {
    try {
      return await candidate.open();
    } catch (error) {
      reasons.push(`${candidate.name}: ${messageOf(error)}`);
    }
  }
  throw new DeviceError(name ?? "backend", `none opens here (${reasons.join("; ")})`);
}

/** Tries every backend, the fastest first: whether it opens here, on which device, or why not. Each is closed again. */
export async function probeBackends(): Promise<BackendProbe[]> {
  const probes: BackendProbe[] = [];
  for (const { name, open } of CANDIDATES) {
    try {
      const backend = await open();
      probes.push({ name, available: true, device: backend.device });
      backend.dispose();
    } catch (error) {
      probes.push({ name, available: false, reason: messageOf(error) });
    }
  }
  return probes;
}

import { ReferenceBackend } from "@moba-js/reference";
import { ArgumentError, Backend, DeviceError } from "@moba-js/tensor";
import { expect, it } from "vitest";
import * as moba from "../src/index.js";

it("opens the best backend, or the one that is named", async () => {
  expect(await moba.openBackend("cpu")).toBeInstanceOf(ReferenceBackend);
  for (const backend of [await moba.openBackend(), await moba.openBackend("cpu")]) {
    using x = backend.tensor([1, 2], [2]);
    expect([...(await x.data())]).toEqual([1, 2]);
    backend.dispose();
    expect(() => backend.zeros([1])).toThrow(DeviceError);
  }
});

it("refuses a name that is no backend's, and says which are", async () => {
  const failed = moba.openBackend("abacus" as moba.BackendName);
  await expect(failed).rejects.toThrow(ArgumentError);
  await expect(failed).rejects.toThrow('backend: expected one of cuda, webgpu, cpu, got "abacus"');
});

it("probes every backend, with its device or the reason", async () => {
  const probes = await moba.probeBackends();
  expect(probes.map(({ name }) => name)).toEqual(["cuda", "webgpu", "cpu"]);
  for (const probe of probes) expect(probe.available ? probe.device : probe.reason).not.toBe("");
});

it("re-exports tensor, reference and snr", () => {
  expect(moba.Backend).toBe(Backend);
  expect(moba.ReferenceBackend).toBe(ReferenceBackend);
  expect(moba.snr({ headDim: 64, blockSize: 128, separation: 1 })).toBe(0.5);
  expect(moba.leakCheck).toBeTypeOf("function");
});

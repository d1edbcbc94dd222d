import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { ReferenceBackend } from "@moba-js/reference";
import { ArgumentError, Backend, DeviceError } from "@moba-js/tensor";
import { expect, it } from "vitest";
import { driver, nodeLacks } from "../../webgpu/test/hosts.js";
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

it.skipIf(nodeLacks)("opens WebGPU on a software adapter only by name", () => {
  const code = `import { openBackend, probeBackends } from "moba-js";
    const named = await openBackend("webgpu");
    const best = await openBackend();
    const [, { device }] = await probeBackends();
    console.log(JSON.stringify({ named: named.name, best: best.name, software: /swiftshader|llvmpipe/i.test(device) }));
    process.exit(0);`;
  const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", code], {
    encoding: "utf8",
    cwd: fileURLToPath(new URL("..", import.meta.url)),
    env: { ...process.env, ...driver },
  });
  const { named, best, software } = JSON.parse(stdout || JSON.stringify({ named: stderr }));
  expect(named).toBe("webgpu");
  if (software) expect(best).not.toBe("webgpu");
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

import { spawnSync } from "node:child_process";
import { fileURLToPath, pathToFileURL } from "node:url";
import { DeviceError } from "@moba-js/tensor";
import { expect, it } from "vitest";
import { cudaDevices, openCuda } from "../src/index.js";

const root = fileURLToPath(new URL("..", import.meta.url));

/** The error of asking for the devices, where there are none to be had. */
function missing(): unknown {
  try {
    cudaDevices();
    return undefined;
  } catch (error) {
    return error;
  }
}

const absent = missing();
if (absent === undefined) console.log("skipped: what is said without a driver (there is one here)");

it.runIf(absent)("says what is missing where there is no driver or no addon", async () => {
  expect(absent).toBeInstanceOf(DeviceError);
  expect((absent as Error).message).toMatch(/^cuda: (no NVIDIA driver: libcuda\.so\.1|no addon for )/);
  await expect(openCuda()).rejects.toThrow((absent as Error).message);
});

it.each(["import", "require"])("the built package loads by %s, also in worker threads that end", (how) => {
  const load =
    how === "import"
      ? `await import("@moba-js/cuda")`
      : `process.getBuiltinModule("module").createRequire(${JSON.stringify(root)})("@moba-js/cuda")`;
  // A worker's module has no place to resolve the package's name from.
  const built = how === "import" ? pathToFileURL(`${root}dist/index.js`).href : `${root}dist/index.cjs`;
  const body = `const { cudaDevices } = ${load}; try { cudaDevices(); } catch (error) { if (error.name !== "DeviceError") throw error; }`;
  const source = `
    import { Worker } from "node:worker_threads";
    ${body}
    const url = new URL("data:text/javascript," + encodeURIComponent(${JSON.stringify(body.replace("@moba-js/cuda", built))}));
    for (let i = 0; i < 6; i++) {
      const worker = new Worker(url);
      if (i % 2 === 0) await new Promise((done, failed) => worker.on("exit", done).on("error", failed));
      else await worker.terminate();
    }
    console.log("done");`;
  const { status, stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", source], {
    cwd: root,
    encoding: "utf8",
  });
  expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: "done\n", stderr: "" });
});

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { blasLibraries } from "../src/blas.js";

it("looks for cuBLASLt where the loader does, then in toolkits, and not for one later than the driver", () => {
  const libraries = blasLibraries(12080, { CUDA_HOME: "/somewhere" });
  expect(libraries.slice(0, 2)).toEqual(["libcublasLt.so.12", "libcublasLt.so"]);
  expect(libraries).toContain("/somewhere/lib64/libcublasLt.so.12");
  expect(libraries.indexOf("/somewhere/lib64/libcublasLt.so.12")).toBeLessThan(
    libraries.indexOf("/usr/local/cuda/lib64/libcublasLt.so.12"),
  );
  expect(libraries.filter((library) => library.endsWith(".13"))).toEqual([]);
  expect(blasLibraries(13000, {})[0]).toBe("libcublasLt.so.13");
});

/** Where a CUDA toolkit is installed with cuBLASLt's header. */
const include = [process.env.CUDA_HOME, "/usr/local/cuda"]
  .map((root) => `${root}/include`)
  .find((folder) => existsSync(`${folder}/cublasLt.h`));
if (include === undefined) console.log("skipped: the comparison with cublasLt.h (it is not installed)");

it.skipIf(include === undefined)("declares cuBLASLt as its own header does", () => {
  const file = fileURLToPath(new URL("cublaslt_header.cc", import.meta.url));
  const args = ["-std=c++17", "-fsyntax-only", `-I${include}`, file];
  const { status, stderr } = spawnSync(process.env.CXX ?? "g++", args, { encoding: "utf8" });
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
});

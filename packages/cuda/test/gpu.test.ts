import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";
import { cudaDevices } from "../src/index.js";

/** Why nothing can be checked here. */
function reasonToSkip(): string | undefined {
  try {
    return cudaDevices().length > 0 ? undefined : "the driver shows no device";
  } catch (error) {
    return (error as Error).message;
  }
}

const reason = reasonToSkip();
if (reason) console.log(`skipped: the checks on a GPU (${reason})`);

it.skipIf(reason).each(["gpu-checks.mjs", "training-checks.mjs", "soak.mjs"])(
  "tools/%s passes on this GPU",
  (script) => {
    const file = fileURLToPath(new URL(`../tools/${script}`, import.meta.url));
    const { status, stdout } = spawnSync(process.execPath, ["--expose-gc", file], { encoding: "utf8" });
    console.log(stdout);
    expect(status).toBe(0);
    expect(stdout).toMatch(/[1-9]\d* passed, 0 failed\n$/);
  },
  1_800_000,
);

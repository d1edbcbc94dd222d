#!/usr/bin/env node
/*
 * Runs the conformance suite on this machine's WebGPU device in every tier that it has, from the built packages:
 *
 *   node packages/webgpu/tools/tiers.mjs [--tiers plain,subgroups] [--dtypes f32,f16,bf16] [--only attend,moba] [--seed N]
 *
 * A tier that the device does not reach is reported as missing, and counts as a failure if it was asked for.
 */
import { parseArgs } from "node:util";
import { formatMatrix, runConformance } from "../../conformance/dist/index.js";
import { openWebGpu, TIERS } from "../dist/index.js";

const { values } = parseArgs({
  options: {
    tiers: { type: "string" },
    dtypes: { type: "string", default: "f32,f16,bf16" },
    only: { type: "string" },
    seed: { type: "string" },
  },
});

for (const tier of values.tiers?.split(",") ?? TIERS) {
  const backend = await openWebGpu({ tier }).catch(({ message }) => console.log(`${message}\n`));
  if (backend) {
    const start = performance.now();
    const report = await runConformance(backend, {
      dtypes: values.dtypes.split(","),
      ...(values.only && { only: values.only.split(",") }),
      ...(values.seed && { seed: Number(values.seed) }),
    });
    console.log(formatMatrix(report));
    console.log(`tier ${tier}: ${((performance.now() - start) / 1000).toFixed(0)} s\n`);
    if (report.failed > 0) process.exitCode = 1;
    backend.dispose();
  } else if (values.tiers) {
    process.exitCode = 1;
  }
}
process.exit();

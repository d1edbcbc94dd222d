import { arch, availableParallelism, cpus, platform, totalmem } from "node:os";
import { probeBackends } from "moba-js";
import { type Output, table } from "../output.js";

/**
 * `moba doctor`: which backends open here, and why others do not.
 * @returns whether any does.
 */
export async function doctor(output: Output): Promise<boolean> {
  const backends = await probeBackends();
  const machine = {
    node: process.version,
    platform: `${platform()} ${arch()}`,
    processor: cpus()[0]?.model ?? "unknown",
    cores: availableParallelism(),
    memoryGiB: Math.round(totalmem() / 2 ** 30),
  };
  output.print(`Node.js ${machine.node} on ${machine.platform}`);
  output.print(`${machine.processor}, ${machine.cores} cores, ${machine.memoryGiB} GiB of memory`);
  output.print();
  const rows = backends.map((probe) => [
    probe.name,
    probe.available ? "available" : "not available",
    probe.available ? probe.device : probe.reason,
  ]);
  output.print(table([["backend", "", ""], ...rows], [0, 1, 2]));
  output.result({ ...machine, backends });
  return backends.some(({ available }) => available);
}

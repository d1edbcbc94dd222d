/// <reference types="@webgpu/types" />
import { bytesPerElement } from "@moba-js/tensor";
import type { Commands } from "./commands.js";
import { USAGE } from "./memory.js";

/** Every JavaScript host has it, but not the language's own library. */
declare const performance: { now(): number };

/** Measures device time: by timestamps where the device has them, else by the clock until the queue is empty. */
export class Stopwatch {
  #queries: GPUQuerySet | undefined;

  constructor(private readonly commands: Commands) {}

  /** Milliseconds between the first and the last of what `run` enqueues. */
  async time(run: () => void): Promise<number> {
    await this.commands.drain();
    return this.commands.device.features.has("timestamp-query")
      ? this.#byTimestamps(run)
      : this.#byClock(run);
  }

  async #byClock(run: () => void): Promise<number> {
    const start = performance.now();
    run();
    await this.commands.drain();
    return performance.now() - start;
  }

  async #byTimestamps(run: () => void): Promise<number> {
    const { commands } = this;
    this.#queries ??= commands.device.createQuerySet({ type: "timestamp", count: 2 });
    const querySet = this.#queries;
    const mark = (beginningOfPassWriteIndex: number) =>
      commands.encode((encoder) =>
        encoder.beginComputePass({ timestampWrites: { querySet, beginningOfPassWriteIndex } }).end(),
      );
    mark(0);
    run();
    mark(1);
    const stamps = commands.workspace(16 / bytesPerElement("u32"), "u32");
    const { device } = commands;
    const resolved = device.createBuffer({ size: 16, usage: USAGE.queryResolve | USAGE.copySource });
    commands.encode((encoder) => {
      encoder.resolveQuerySet(querySet, 0, 2, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, stamps.storage.buffer, 0, 16);
    });
    try {
      const [start, end] = new BigUint64Array(await commands.download(stamps.storage));
      return Math.max(0, Number(end - start) / 1e6);
    } finally {
      resolved.destroy();
      stamps.free();
    }
  }
}

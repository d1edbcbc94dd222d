import { type CapturedWork, DeviceError } from "@moba-js/tensor";

/** Work that was captured, to be launched again and again at once. */
export class Graph implements CapturedWork {
  #ended = false;

  /** @internal See `CudaBackend.capture`. */
  constructor(
    private readonly launch: () => void,
    private readonly end: () => void,
  ) {}

  /**
   * Enqueues the captured work, on the same memory.
   * @throws DeviceError when disposed, or when the device is lost.
   */
  replay(): void {
    if (this.#ended) throw new DeviceError("cuda", "this graph is disposed");
    this.launch();
  }

  /** Gives the memory back that was kept for the work. Disposing twice is allowed. */
  dispose(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.end();
  }

  /** `using graph = …` disposes at the end of the block. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

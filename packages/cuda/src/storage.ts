import type { Storage, Tensor } from "@moba-js/tensor";

/** A tensor's memory on a CUDA device. */
export class CudaStorage implements Storage {
  #holders = 0;
  #freed = false;

  /**
   * @param onUse told when an operation uses the memory
   * @param release gives the memory back, once
   */
  constructor(
    readonly pointer: number,
    readonly byteLength: number,
    readonly onUse: (storage: CudaStorage) => void,
    private readonly release: () => void,
  ) {}

  /** Gives the memory back, or lets the last holder do so. */
  free(): void {
    this.#freed = true;
    if (this.#holders === 0) this.release();
  }

  /** Keeps the memory beyond `free`: captured work uses it. */
  hold(): void {
    this.#holders += 1;
  }

  /** Ends a `hold`. */
  letGo(): void {
    this.#holders -= 1;
    if (this.#holders === 0 && this.#freed) this.release();
  }
}

/** The device address of a tensor of a CUDA backend, for an operation that is being enqueued. */
export function pointerOf(tensor: Tensor): number {
  const storage = tensor.storage as CudaStorage;
  storage.onUse(storage);
  return storage.pointer;
}

import {
  Backend,
  DeviceError,
  type DType,
  type Storage,
  storageArray,
  type TypedArray,
} from "../src/index.js";

/** A backend of memory only, 1 MB of it: what the tests of tensors and scopes need. */
export class HostBackend extends Backend {
  readonly name = "host";
  readonly device = "test memory";
  freed = 0;
  closed = 0;

  supports(): boolean {
    return false;
  }
  async time(run: () => void): Promise<number> {
    run();
    return 0;
  }
  protected allocate(byteLength: number, dtype: DType): Storage & { array: TypedArray } {
    if (this.memory().bytes + byteLength > 1e6) throw new DeviceError(this.name, "out of memory");
    const array = storageArray(dtype, byteLength / storageArray(dtype, 1).BYTES_PER_ELEMENT);
    return {
      array,
      byteLength,
      free: () => {
        this.freed += 1;
      },
    };
  }
  protected upload(storage: Storage, data: TypedArray): void {
    (storage as Storage & { array: TypedArray }).array.set(data);
  }
  protected async download(storage: Storage): Promise<TypedArray> {
    return (storage as Storage & { array: TypedArray }).array.slice();
  }
  protected close(): void {
    this.closed += 1;
  }
}

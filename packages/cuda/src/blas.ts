import { join } from "node:path";
import type { FloatDType } from "@moba-js/tensor";
import { deviceErrors, type NativeDevice, type NativeProduct } from "./native.js";

/** A product `[rows, inner] · [inner, columns]` of row-major matrices, factors as stored or transposed. */
export interface ProductShape {
  readonly rows: number;
  readonly columns: number;
  readonly inner: number;
  readonly transposeA: boolean;
  readonly transposeB: boolean;
  readonly dtype: FloatDType;
  /** Of the result: that of the factors, or f32. */
  readonly outDtype: FloatDType;
}

/** The library's numbers of the element types. */
const TYPES = { f32: 0, f16: 2, bf16: 14 } as const;

/** What products may use: what NVIDIA advises for Hopper. */
const MOST_WORKSPACE = 32 * 2 ** 20;

const NAMES: readonly (readonly [major: number, file: string])[] = [
  [13, "libcublasLt.so.13"],
  [12, "libcublasLt.so.12"],
  [0, "libcublasLt.so"],
];

/**
 * Where cuBLASLt may be, best first: wherever the system's loader looks (`LD_LIBRARY_PATH` too), then in the folders of CUDA
 * toolkits. A version later than the driver's is left out.
 */
export function blasLibraries(driverVersion: number, environment: NodeJS.ProcessEnv = process.env): string[] {
  const files = NAMES.filter(([major]) => 1000 * major <= driverVersion).map(([, file]) => file);
  const roots = [environment.CUDA_HOME, environment.CUDA_PATH, "/usr/local/cuda", "/opt/cuda"];
  const folders = roots.flatMap((root) =>
    root ? ["lib64", "lib", "targets/x86_64-linux/lib"].map((folder) => join(root, folder)) : [],
  );
  return [...files, ...folders.flatMap((folder) => files.map((file) => join(folder, file)))];
}

/** cuBLASLt on one device. */
export class Blas {
  readonly #native: NativeDevice;
  /** Algorithms that were chosen once, undefined where the library has none: by a number that shapes seldom have in common. */
  readonly #plans = new Map<number, { shape: ProductShape; plan: NativeProduct | undefined }[]>();

  /** @param version of the library: "12.8.4" */
  private constructor(
    native: NativeDevice,
    readonly version: string,
  ) {
    this.#native = native;
  }

  /** The first of these libraries that works, if any. */
  static open(native: NativeDevice, libraries: readonly string[]): Blas | undefined {
    for (const library of libraries) {
      const version = deviceErrors(() => native.loadBlas(library));
      if (version > 0) return new Blas(native, versionOf(version));
    }
    return undefined;
  }

  /** The algorithm for a product; undefined where the library has none. */
  plan(shape: ProductShape): NativeProduct | undefined {
    const { rows, columns, inner, transposeA, transposeB, dtype, outDtype } = shape;
    if (rows === 0 || columns === 0 || inner === 0) return undefined;
    const hash = rows + 3 * columns + 5 * inner;
    const plans = this.#plans.get(hash) ?? [];
    const known = plans.find((planned) => isSame(planned.shape, shape));
    if (known) return known.plan;
    const [type, outType] = [TYPES[dtype], TYPES[outDtype]];
    const plan = deviceErrors(() =>
      this.#native.planProduct(rows, columns, inner, transposeA, transposeB, type, outType, MOST_WORKSPACE),
    );
    const kept = { rows, columns, inner, transposeA, transposeB, dtype, outDtype };
    this.#plans.set(hash, [...plans, { shape: kept, plan }]);
    return plan;
  }
}

const isSame = (one: ProductShape, other: ProductShape): boolean =>
  one.rows === other.rows &&
  one.columns === other.columns &&
  one.inner === other.inner &&
  one.transposeA === other.transposeA &&
  one.transposeB === other.transposeB &&
  one.dtype === other.dtype &&
  one.outDtype === other.outDtype;

/** "12.8.4" of 120804, "11.11.3" of 111103; "13.0.0" of 130000. */
const versionOf = (version: number): string =>
  [Math.floor(version / 10000), Math.floor((version % 10000) / 100), version % 100].join(".");

import { defineConfig, type Options } from "tsup";

/** The build of every library package: ESM, CommonJS and type declarations with source maps. */
export const library = (overrides: Options = {}) =>
  defineConfig({
    entry: ["src/index.ts"],
    format: ["esm", "cjs"],
    // tsup still sets `baseUrl`, which TypeScript 6 only tolerates when told to.
    dts: { compilerOptions: { ignoreDeprecations: "6.0" } },
    sourcemap: true,
    clean: true,
    target: "es2022",
    ...overrides,
  });

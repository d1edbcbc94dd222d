import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const source = (name: string) => fileURLToPath(new URL(`./packages/${name}/src/index.ts`, import.meta.url));

export default defineConfig({
  resolve: {
    alias: {
      "@moba-js/tensor": source("tensor"),
      "@moba-js/reference": source("reference"),
      "@moba-js/model/node": source("model").replace("index.ts", "node.ts"),
      "@moba-js/model": source("model"),
      "@moba-js/snr": source("snr"),
      "@moba-js/conformance": source("conformance"),
      "moba-js": source("moba-js"),
    },
  },
  test: {
    include: ["{packages,apps}/*/{src,test}/**/*.test.ts", "tools/**/*.test.ts"],
    testTimeout: 120_000,
    execArgv: ["--expose-gc"],
  },
});

import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vitest/config";
import { BaseSequencer, type TestSpecification } from "vitest/node";

const source = (name: string) => fileURLToPath(new URL(`./packages/${name}/src/index.ts`, import.meta.url));

/** WGSL files as their text, as the builds of the packages have them. */
const wgsl: Plugin = {
  name: "wgsl",
  transform: (code, id) => (id.endsWith(".wgsl") ? `export default ${JSON.stringify(code)}` : undefined),
};

/** The file that takes longest, by far, first: at the end it would run alone. */
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const isLongest = ({ moduleId }: TestSpecification) => moduleId.endsWith("webgpu/test/node.test.ts");
    const sorted = await super.sort(files);
    return [...sorted.filter(isLongest), ...sorted.filter((file) => !isLongest(file))];
  }
}

export default defineConfig({
  plugins: [wgsl],
  resolve: {
    alias: {
      "@moba-js/tensor": source("tensor"),
      "@moba-js/reference": source("reference"),
      "@moba-js/model/node": source("model").replace("index.ts", "node.ts"),
      "@moba-js/model": source("model"),
      "@moba-js/snr": source("snr"),
      "@moba-js/cuda": source("cuda"),
      "@moba-js/conformance": source("conformance"),
      "@moba-js/webgpu": source("webgpu"),
      "moba-js": source("moba-js"),
    },
  },
  test: {
    include: ["{packages,apps}/*/{src,test}/**/*.test.ts", "tools/**/*.test.ts"],
    testTimeout: 120_000,
    execArgv: ["--expose-gc"],
    maxWorkers: Math.max(2, availableParallelism() - 1), // one that waits for a device or a browser leaves its core to another
    sequence: { sequencer: LongestFirst },
  },
});

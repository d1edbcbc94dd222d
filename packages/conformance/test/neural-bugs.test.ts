import { ReferenceBackend } from "@moba-js/reference";
import type {
  AdamWProblem,
  AttentionBackwardProblem,
  AttentionGradients,
  CopyRowsProblem,
  CrossEntropyProblem,
  CrossEntropyResult,
  FloatDType,
  MatmulProblem,
  RmsNormProblem,
  RopeProblem,
  RouteCentroidsProblem,
  Tensor,
  UpdateCentroidsProblem,
} from "@moba-js/tensor";
import { describe, expect, it } from "vitest";
import { formatMatrix, type Group, runConformance } from "../src/index.js";
import { arrayOf } from "./changed-backends.js";

const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
console.log(`bugs in neural and decoding operations: seed ${seed}`);

type Out = Tensor<FloatDType>;

/** Backends with a bug each, and the group in which the suite must find it. */
const BUGS: Readonly<Record<string, readonly [group: Group, backend: () => ReferenceBackend]>> = {
  "a product that reads b as it is stored": [
    "matmul",
    () =>
      new (class extends ReferenceBackend {
        protected override runMatmul(problem: MatmulProblem, out: Out): void {
          super.runMatmul({ ...problem, transposeB: false }, out);
        }
      })(),
  ],
  "a normalization without epsilon": [
    "rmsNorm",
    () =>
      new (class extends ReferenceBackend {
        protected override runRmsNorm(problem: RmsNormProblem, out: Out): void {
          super.runRmsNorm({ ...problem, epsilon: 0 }, out);
        }
      })(),
  ],
  "a rotation that never turns back": [
    "rope",
    () =>
      new (class extends ReferenceBackend {
        protected override runRope(problem: RopeProblem, out: Out): void {
          super.runRope({ ...problem, inverse: false }, out);
        }
      })(),
  ],
  "an embedding that wraps indices round": [
    "embedding",
    () =>
      new (class extends ReferenceBackend {
        protected override runEmbedding(problem: { table: Out; indices: Tensor<"i32"> }, out: Out): void {
          const rows = problem.table.shape[0];
          const wrapped = Array.from(arrayOf(problem.indices), (index) => (index + 10 * rows) % rows);
          using indices = this.tensor(wrapped, problem.indices.shape, "i32");
          super.runEmbedding({ ...problem, indices }, out);
        }
      })(),
  ],
  "a loss of ignored tokens": [
    "crossEntropy",
    () =>
      new (class extends ReferenceBackend {
        protected override runCrossEntropy(problem: CrossEntropyProblem, outputs: CrossEntropyResult): void {
          using targets = this.tensor(
            Array.from(arrayOf(problem.targets), (y) => Math.max(0, y)),
            problem.targets.shape,
            "i32",
          );
          super.runCrossEntropy({ ...problem, targets }, outputs);
        }
      })(),
  ],
  "a step without bias correction": [
    "adamw",
    () =>
      new (class extends ReferenceBackend {
        protected override runAdamW(problem: AdamWProblem): void {
          using schedule = this.tensor([1_000_000, arrayOf(problem.schedule)[1]], [2]);
          super.runAdamW({ ...problem, schedule });
        }
      })(),
  ],
  "a step that forgets clipping": [
    "adamw",
    () =>
      new (class extends ReferenceBackend {
        protected override runAdamW(problem: AdamWProblem): void {
          super.runAdamW({ ...problem, clipNorm: Number.POSITIVE_INFINITY });
        }
      })(),
  ],
  "a step with the norms of single gradients": [
    "adamw",
    () =>
      new (class extends ReferenceBackend {
        protected override runAdamW(problem: AdamWProblem): void {
          for (const parameter of problem.parameters) super.runAdamW({ ...problem, parameters: [parameter] });
        }
      })(),
  ],
  "a step after one that failed": [
    "adamw",
    () =>
      new (class extends ReferenceBackend {
        protected override runAdamW(problem: AdamWProblem): void {
          using gradientNorm = this.zeros([]);
          super.runAdamW({ ...problem, gradientNorm });
          this.write(problem.gradientNorm, arrayOf(gradientNorm));
        }
      })(),
  ],
  "gradients of a window one key too long": [
    "windowAttentionBackward",
    () =>
      new (class extends ReferenceBackend {
        protected override runWindowAttentionBackward(
          problem: AttentionBackwardProblem & { window: number },
          outputs: AttentionGradients,
        ): void {
          super.runWindowAttentionBackward({ ...problem, window: problem.window + 1 }, outputs);
        }
      })(),
  ],
  "gradients of attention that is not causal": [
    "attentionBackward",
    () =>
      new (class extends ReferenceBackend {
        protected override runAttentionBackward(
          problem: AttentionBackwardProblem & { causal: boolean },
          outputs: AttentionGradients,
        ): void {
          super.runAttentionBackward({ ...problem, causal: false }, outputs);
        }
      })(),
  ],
  "rows that all go to the begin": [
    "copyRows",
    () =>
      new (class extends ReferenceBackend {
        protected override runCopyRows(problem: CopyRowsProblem): void {
          super.runCopyRows({ ...problem, offsets: problem.offsets.map(() => 0) });
        }
      })(),
  ],
  "running means that start a block with every piece": [
    "updateCentroids",
    () =>
      new (class extends ReferenceBackend {
        protected override runUpdateCentroids(problem: UpdateCentroidsProblem): void {
          const { blockSize, offsets } = problem;
          const rounded = offsets.map((offset) => blockSize * Math.floor(offset / blockSize));
          super.runUpdateCentroids({ ...problem, offsets: rounded });
        }
      })(),
  ],
  "a routing of one block less": [
    "routeCentroids",
    () =>
      new (class extends ReferenceBackend {
        protected override runRouteCentroids(problem: RouteCentroidsProblem, indices: Tensor<"i32">): void {
          super.runRouteCentroids(problem, indices);
          const slots = indices.shape[2];
          arrayOf(indices).forEach((_, i, stored) => {
            if (i % slots === 0) stored[i] = -1;
          });
        }
      })(),
  ],
};

describe("the suite finds", () => {
  it.each(Object.entries(BUGS))("%s", async (_, [group, backend]) => {
    const report = await runConformance(backend(), { seed, only: [group], dtypes: ["f32"] });
    expect(report.failed, formatMatrix(report)).toBeGreaterThan(0);
    const right = await runConformance(new ReferenceBackend(), { seed, only: [group], dtypes: ["f32"] });
    expect(right.failed, formatMatrix(right)).toBe(0);
  });
});

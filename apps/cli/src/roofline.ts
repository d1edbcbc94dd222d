import { bytesPerElement, type FloatDType } from "@moba-js/tensor";

/** What a computation cannot do without. */
export interface Work {
  /** Multiplications and additions of the matrix products. */
  readonly flop: number;
  /** Inputs read once and outputs written once. */
  readonly bytes: number;
}

/** What a device can do at most. */
interface Peak {
  /** FLOP a second of f16 and bf16 matrix products accumulated in float32. */
  readonly matrix: number;
  /** FLOP a second of float32. */
  readonly f32: number;
  /** Bytes a second. */
  readonly bandwidth: number;
}

const peak = (matrixTera: number, f32Tera: number, bandwidthTera: number): Peak => ({
  matrix: matrixTera * 1e12,
  f32: f32Tera * 1e12,
  bandwidth: bandwidthTera * 1e12,
});

/** Data sheets, dense, by the names that the driver gives; the first that fits counts. */
const PEAKS: readonly (readonly [RegExp, Peak])[] = [
  [/B200/, peak(2250, 75, 8)],
  [/H200/, peak(989, 67, 4.8)],
  [/H100 NVL/, peak(835, 60, 3.9)],
  [/H100 PCIe/, peak(756, 51, 2)],
  [/H100/, peak(989, 67, 3.35)],
  [/A100.*PCIe.*80GB|A100 80GB PCIe/, peak(312, 19.5, 1.935)],
  [/A100.*80GB/, peak(312, 19.5, 2.039)],
  [/A100/, peak(312, 19.5, 1.555)],
  [/L40S/, peak(362, 91.6, 0.864)],
  [/RTX 4090/, peak(165, 82.6, 1.008)],
  [/RTX 3090/, peak(71, 35.6, 0.936)],
];

/** The least milliseconds that the work can take on a device, or undefined when the device is not known. */
export function leastTime(device: string, dtype: FloatDType, work: Work): number | undefined {
  const known = PEAKS.find(([name]) => name.test(device))?.[1];
  if (known === undefined) return undefined;
  const compute = work.flop / (dtype === "f32" ? known.f32 : known.matrix);
  return 1000 * Math.max(compute, work.bytes / known.bandwidth);
}

/** A batch of sequences of `tokens` each. */
export interface AttentionShape {
  readonly batch: number;
  readonly tokens: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly blockSize: number;
  readonly topK: number;
  readonly dtype: FloatDType;
}

/** Matrix products of a backward pass for one of the forward pass: 5 for 2, since scores are computed again. */
const BACKWARD = 2.5;

/** The work of causal self-attention and its stages; without a prefix, of MoBA. */
export function attentionWork(shape: AttentionShape) {
  const { batch, tokens, heads, kvHeads, headDim, blockSize, topK, dtype } = shape;
  const blocks = Math.ceil(tokens / blockSize);
  let routed = 0; // scores of a query with a block
  let attended = 0; // scores of a query with a key
  for (let block = 0; block < blocks; block++) {
    const rows = Math.min(blockSize, tokens - block * blockSize);
    routed += rows * block;
    attended += rows * Math.min(topK - 1, block) * blockSize + (rows * (rows + 1)) / 2;
  }
  const products = (scores: number) => 2 * headDim * heads * batch * scores;
  const element = bytesPerElement(dtype);
  const q = batch * tokens * heads * headDim * element;
  const k = batch * tokens * kvHeads * headDim * element;
  const lse = batch * tokens * heads * 4;
  const indices = batch * tokens * heads * Math.min(topK, blocks) * 4;
  const dense = 2 * q + 2 * k + lse;
  // q, k, v, dOut, out, lse and dq, dk, dv, whether out and lse are read or written.
  const gradients = 4 * q + 4 * k + lse;
  const attending = 2 * products(attended);
  const attendingAll = 2 * products((tokens * (tokens + 1)) / 2);
  return {
    centroids: { flop: 0, bytes: k + batch * blocks * kvHeads * headDim * 4 },
    route: { flop: products(routed), bytes: q + k + indices },
    attend: { flop: attending, bytes: dense + indices },
    moba: { flop: products(routed) + attending, bytes: dense + indices },
    dense: { flop: attendingAll, bytes: dense },
    backward: { flop: BACKWARD * attending, bytes: gradients + indices },
    forwardBackward: {
      flop: products(routed) + (1 + BACKWARD) * attending,
      bytes: gradients + indices,
    },
    denseBackward: { flop: BACKWARD * attendingAll, bytes: gradients },
    denseForwardBackward: { flop: (1 + BACKWARD) * attendingAll, bytes: gradients },
  } satisfies Record<string, Work>;
}

/** The work of one decoding step: one query a sequence against `tokens` keys. */
export function decodeWork(shape: AttentionShape) {
  const { batch, tokens, heads, kvHeads, headDim, blockSize, topK, dtype } = shape;
  const blocks = Math.ceil(tokens / blockSize);
  const element = bytesPerElement(dtype);
  const keys = Math.min(topK, blocks) * blockSize;
  const rows = 2 * batch * heads * headDim * element;
  const products = (scores: number) => 2 * headDim * heads * batch * scores;
  return {
    moba: {
      flop: products(blocks) + 2 * products(keys),
      // Each head reads its own blocks; those of one group may be the same.
      bytes: rows + batch * kvHeads * headDim * (blocks * 4 + 2 * keys * element),
    },
    dense: { flop: 2 * products(tokens), bytes: rows + 2 * batch * tokens * kvHeads * headDim * element },
  } satisfies Record<string, Work>;
}

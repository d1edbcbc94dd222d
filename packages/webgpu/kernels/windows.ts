import { type CuSeqlens, cuBlocks, DeviceError, type Tensor } from "@moba-js/tensor";
import { type Piece, WINDOW_BYTES, windowOf } from "../src/commands.js";
import type { Context } from "../src/context.js";
import { firstKeyOf, lastKeyOf, type Mask, maskSpan, type Packing, type Wave } from "./range.js";

/** Elements, rows or blocks `first … end − 1`. */
export interface Range {
  readonly first: number;
  readonly end: number;
}

/**
 * How many rows can be bound at once, wherever the first one begins.
 * @param rowBytes bytes of the longest row
 * @throws DeviceError when not even one can
 */
export function mostRows({ commands }: Context, rowBytes: number): number {
  const most = Math.floor((commands.bindingLimit - WINDOW_BYTES) / Math.max(1, rowBytes));
  if (most >= 1) return most;
  throw new DeviceError(
    "webgpu",
    `cannot bind one row of ${rowBytes} bytes: this device allows ${commands.bindingLimit}`,
  );
}

/** Some rows of a tensor or of workspace, and what else has to be bound with them; a kernel counts from the first row of the whole. */
export const tokenWindow = (whole: Tensor | Piece, rowElements: number, { first, end }: Range): Piece =>
  windowOf(whole, first * rowElements, end * rowElements);

/** `first … end − 1` in ranges of `most` at most. */
export const rangesOf = ({ first, end }: Range, most: number): Range[] =>
  Array.from({ length: Math.ceil((end - first) / most) }, (_, i) => ({
    first: first + i * most,
    end: Math.min(first + (i + 1) * most, end),
  }));

/** Blocks of all sequences, and the tokens that they hold. */
export interface BlockWindow {
  readonly blocks: Range;
  readonly tokens: Range;
}

/**
 * Cuts the blocks of all sequences into ranges of so many blocks and tokens at most.
 * @throws DeviceError when a block has more tokens
 */
export function blockWindows(
  cuSeqlens: CuSeqlens,
  blockSize: number,
  most: { readonly blocks: number; readonly tokens: number },
): BlockWindow[] {
  const starts = cuBlocks(cuSeqlens, blockSize);
  const blocks = starts[starts.length - 1];
  const tokens = cuSeqlens[cuSeqlens.length - 1];
  if (blocks <= most.blocks && tokens <= most.tokens) {
    return [{ blocks: { first: 0, end: blocks }, tokens: { first: 0, end: tokens } }];
  }
  const windows: BlockWindow[] = [];
  let first = { block: 0, token: 0 };
  const close = (block: number, token: number) => {
    if (block === first.block) {
      throw new DeviceError(
        "webgpu",
        `cannot bind a block of ${blockSize} keys: ${most.tokens} can be bound`,
      );
    }
    windows.push({
      blocks: { first: first.block, end: block },
      tokens: { first: first.token, end: token },
    });
    first = { block, token };
  };
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    for (let block = starts[s]; block < starts[s + 1]; block++) {
      const begin = cuSeqlens[s] + (block - starts[s]) * blockSize;
      const end = Math.min(begin + blockSize, cuSeqlens[s + 1]);
      if (end - first.token > most.tokens || block - first.block >= most.blocks) close(block, begin);
      if (end - begin > most.tokens) close(block, begin); // nothing is before it, so this throws
    }
  }
  close(blocks, tokens);
  return windows;
}

/** Some queries, and all the keys that they see. */
export interface BoundPart {
  readonly queries: Pick<Wave, "firstToken" | "tokens">;
  readonly keys: Range;
}

/** The keys that the queries of a wave see, from the first to the last. */
function visibleKeys(
  { cuSeqlens, cuSeqlensK }: Packing,
  mask: Mask,
  { firstToken, tokens }: Pick<Wave, "firstToken" | "tokens">,
): Range & { readonly sequences: number } {
  let [first, end, sequences] = [Number.POSITIVE_INFINITY, 0, 0];
  for (let s = 0; s + 1 < cuSeqlens.length; s++) {
    const begin = Math.max(cuSeqlens[s], firstToken);
    const last = Math.min(cuSeqlens[s + 1], firstToken + tokens) - 1;
    if (last < begin) continue;
    const offset = cuSeqlensK[s + 1] - cuSeqlens[s + 1];
    const keys = cuSeqlensK[s + 1] - cuSeqlensK[s];
    const positions = [begin, last].map((token) => token + offset - cuSeqlensK[s]);
    const [low, high] = [firstKeyOf(mask, positions[0]), lastKeyOf(mask, keys, positions[1])];
    sequences += 1;
    if (high <= low) continue;
    first = Math.min(first, cuSeqlensK[s] + low);
    end = Math.max(end, cuSeqlensK[s] + high);
  }
  return { first: Math.min(first, end), end, sequences };
}

/**
 * Cuts the queries of a wave into parts that can be bound together with the keys that they see. Where even few queries see more keys
 * than that, the part has more: its keys have to be cut.
 */
export function boundParts(
  problem: Packing,
  mask: Mask,
  wave: Pick<Wave, "firstToken" | "tokens">,
  most: { readonly queries: number; readonly keys: number },
): BoundPart[] {
  const { firstToken, tokens } = wave;
  const { first, end, sequences } = visibleKeys(problem, mask, wave);
  const isLocal = "span" in mask && 2 * maskSpan(mask) <= most.keys;
  const helps = tokens > most.queries || (end - first > most.keys && (isLocal || sequences > 1));
  if (tokens <= 1 || !helps) return [{ queries: { firstToken, tokens }, keys: { first, end } }];
  const half = Math.ceil(tokens / 2);
  return [
    ...boundParts(problem, mask, { firstToken, tokens: half }, most),
    ...boundParts(problem, mask, { firstToken: firstToken + half, tokens: tokens - half }, most),
  ];
}

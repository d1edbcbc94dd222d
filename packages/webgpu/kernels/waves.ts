import { type AttentionProblem, DeviceError } from "@moba-js/tensor";
import type { Piece } from "../src/commands.js";
import type { Context } from "../src/context.js";
import { groupOf, slotElements } from "./attention.js";
import type { Wave } from "./range.js";
import { mostRows } from "./windows.js";

/** Bytes that workspace may take which is bound at once, and could be less. */
export const mostWorkspace = ({ commands, maxWorkspaceBytes }: Context): number =>
  Math.min(maxWorkspaceBytes, commands.device.limits.maxBufferSize, commands.bindingLimit);

/**
 * Cuts a problem so that its slots fit into the workspace, and the rows of its queries into a binding: first by key heads, then by
 * query tokens.
 * @param count slots of each row
 * @param headLimit key heads of a wave at most
 * @param slotBytes bytes of a slot. Default: those of {@link slotElements}
 * @throws DeviceError when a single query of one key head needs more than can be bound
 */
export function slotWaves(
  context: Context,
  problem: AttentionProblem,
  count: number,
  headLimit = Number.POSITIVE_INFINITY,
  slotBytes = 4 * slotElements(problem.headDim),
): Wave[] {
  const { kvHeads, heads, tokens, headDim } = problem;
  const rowBytes = slotBytes * count * groupOf(problem);
  const rows = Math.max(1, Math.floor(mostWorkspace(context) / rowBytes));
  if (rowBytes > context.commands.bindingLimit) {
    throw new DeviceError("webgpu", `no memory for the ${rowBytes} bytes of one query's slots`);
  }
  const waveTokens = Math.min(tokens, rows, mostRows(context, 4 * heads * Math.max(headDim, count)));
  const mostHeads = Math.max(1, Math.min(kvHeads, headLimit, Math.floor(rows / waveTokens)));
  const headCount = Math.ceil(kvHeads / Math.ceil(kvHeads / mostHeads)); // waves of like sizes
  const waves: Wave[] = [];
  for (let firstHead = 0; firstHead < kvHeads; firstHead += headCount) {
    for (let firstToken = 0; firstToken < tokens; firstToken += waveTokens) {
      waves.push({
        firstHead,
        headCount: Math.min(headCount, kvHeads - firstHead),
        firstToken,
        tokens: Math.min(waveTokens, tokens - firstToken),
      });
    }
  }
  return waves;
}

/** Query rows of the largest of some waves. Workspace for each is of that size, so that one buffer serves them all. */
export const mostWaveRows = (problem: AttentionProblem, waves: readonly Wave[]): number =>
  waves.reduce((most, { headCount, tokens }) => Math.max(most, headCount * tokens), 0) * groupOf(problem);

/** Workspace for the slots of any of some waves. */
export const slotWorkspace = (
  { commands }: Context,
  problem: AttentionProblem,
  waves: readonly Wave[],
  count: number,
): Piece & { free(): void } =>
  commands.workspace(mostWaveRows(problem, waves) * count * slotElements(problem.headDim));

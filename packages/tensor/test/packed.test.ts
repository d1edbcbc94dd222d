import { describe, expect, it } from "vitest";
import {
  ArgumentError,
  blockCount,
  checkCuSeqlens,
  cuBlocks,
  cuSeqlensFromLengths,
  sequenceLengths,
} from "../src/index.js";

describe("cumulative lengths", () => {
  it("come from lengths and go back", () => {
    const cuSeqlens = cuSeqlensFromLengths([3, 0, 5]);
    expect([...cuSeqlens]).toEqual([0, 3, 3, 8]);
    expect(sequenceLengths(cuSeqlens)).toEqual([3, 0, 5]);
    expect([...cuBlocks(cuSeqlens, 2)]).toEqual([0, 2, 2, 5]);
    expect(blockCount(0, 4)).toBe(0);
    expect(() => cuSeqlensFromLengths([1, -1])).toThrow("lengths[1]");
    expect(() => cuSeqlensFromLengths([2 ** 31])).toThrow("lengths[0]");
  });

  it.each([
    [[], "cuSeqlens"],
    ["0,4", "cuSeqlens"],
    [[1, 4], "cuSeqlens[0]"],
    [[0, 3, 2, 4], "cuSeqlens[2]"],
    [[0, 5], "cuSeqlens[1]"],
    [[0, 3], "cuSeqlens[1]"],
    [[0, 1.5, 4], "cuSeqlens[1]"],
    [[0, Number.NaN, 4], "cuSeqlens[1]"],
    [[0, -1, 4], "cuSeqlens[1]"],
  ])("%j for 4 tokens is refused, naming %s", (value, argument) => {
    const check = () => checkCuSeqlens("cuSeqlens", value as number[], 4);
    expect(check).toThrow(ArgumentError);
    expect(check).toThrow(`${argument}: expected`);
  });

  it("are copied", () => {
    const given = Int32Array.of(0, 4);
    const checked = checkCuSeqlens("cuSeqlens", given, 4);
    given[1] = 9;
    expect([...checked]).toEqual([0, 4]);
    expect([...checkCuSeqlens("cuSeqlens", undefined, 4)]).toEqual([0, 4]);
  });
});

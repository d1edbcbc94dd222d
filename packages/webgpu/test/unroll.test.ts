import { describe, expect, it } from "vitest";
import { unroll } from "../src/kernel.js";

/** Without blanks, which do not matter. */
const text = (source: string): string => source.replaceAll(/\s+/g, " ").trim();

describe("unroll", () => {
  const written = (source: string) => text(unroll(source, { A: 2, B: 3, MANY: 9 }));

  it("writes marked loops out, with their counter a constant", () => {
    expect(written("x(); @unroll for (var i = 0u; i < A; i++) { y(i); } z();")).toBe(
      "x(); { const i = 0u; y(i); } { const i = 1u; y(i); } z();",
    );
  });

  it("writes loops in loops and loops after loops out, of products and numbers", () => {
    const inner = "@unroll for (var n = 0u; n < 1u; n++) { if (n < i) { y(n); } }";
    const turn = (i: number) => `{ const i = ${i}u; { const n = 0u; if (n < i) { y(n); } } }`;
    expect(written(`@unroll for (var i = 0u; i < 1u * A; i++) { ${inner} } ${inner}`)).toBe(
      `${turn(0)} ${turn(1)} { const n = 0u; if (n < i) { y(n); } }`,
    );
  });

  it("leaves other loops, and those of many turns", () => {
    const loop = "for (var i = 0u; i < MANY; i++) { y(i); }";
    expect(written(`@unroll ${loop} ${loop}`)).toBe(`${loop} ${loop}`);
    expect(
      text(
        unroll(
          "@unroll for (var i = 0u; i < 2u * B; i++) { @unroll for (var n = 0u; n < A; n++) { y(n); } }",
          { A: 1, B: 3 },
        ),
      ),
    ).toBe("for (var i = 0u; i < 2u * B; i++) { { const n = 0u; y(n); } }");
  });

  it("refuses what it cannot write out", () => {
    expect(() => written("@unroll for (var i = 0u; i < C; i++) { y(i); }")).toThrow("C is not known");
    expect(() => written("@unroll for (var i = 0u; i < A; i++) { y(i);")).toThrow("does not end");
  });
});

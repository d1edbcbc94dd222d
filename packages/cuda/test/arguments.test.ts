import { expect, it } from "vitest";
import { Arguments } from "../src/arguments.js";

const hex = (args: Arguments) => Buffer.from(args.packed).toString("hex");

it("packs members at multiples of their alignment, little-endian", () => {
  // struct { int a; void* b; float c; int d; long long e; }
  const args = new Arguments().int(-2).pointer(0x7f12_3456_7890).float(1.5).int(3).long(-1);
  expect(hex(args)).toBe(
    ["feffffff", "00000000", "90785634127f0000", "0000c03f", "03000000", "ffffffffffffffff"].join(""),
  );
});

it("writes what it packs into memory of words", () => {
  const args = new Arguments().int(-2).pointer(0x7f12_3456_7890).float(1.5);
  const target = new Int32Array(8).fill(9);
  args.writeTo(target, 2);
  expect(args.byteLength).toBe(20);
  expect(Buffer.from(target.buffer, 8, 20).toString("hex")).toBe(hex(args));
  expect([target[1], target[7]]).toEqual([9, 9]);
});

it("has no padding behind the last member", () => {
  expect(new Arguments().packed.length).toBe(0);
  expect(new Arguments().int(1).packed.length).toBe(4);
  expect(new Arguments().pointer(1).int(1).packed.length).toBe(12);
  expect(new Arguments().int(1).long(1).packed.length).toBe(16);
});

it("packs an unsigned int above 2^31 and integers up to 2^53", () => {
  expect(hex(new Arguments().int(0xfffffffe))).toBe("feffffff");
  expect(hex(new Arguments().long(2 ** 53 - 1))).toBe("ffffffffffff1f00");
  expect(hex(new Arguments().long(-(2 ** 40)))).toBe("0000000000ffffff");
});

it("places a tensor map at a multiple of 64 and grows for many", () => {
  const map = Uint8Array.from({ length: 128 }, (_, i) => i);
  const args = new Arguments().int(7).bytes(map, 64).bytes(map, 64).int(9).bytes(map, 64);
  expect(args.packed.length).toBe(64 + 128 + 128 + 64 + 128);
  for (const at of [64, 192, 384]) expect([...args.packed.subarray(at, at + 128)]).toEqual([...map]);
  expect([...args.packed.subarray(0, 8)]).toEqual([7, 0, 0, 0, 0, 0, 0, 0]);
  expect([...args.packed.subarray(320, 328)]).toEqual([9, 0, 0, 0, 0, 0, 0, 0]);
});

it("keeps a value that makes it grow", () => {
  const args = new Arguments().bytes(new Uint8Array(256), 1).int(5).bytes(new Uint8Array(252), 1).float(1);
  expect([...args.packed.subarray(256, 260)]).toEqual([5, 0, 0, 0]);
  expect([...args.packed.subarray(512, 516)]).toEqual([0, 0, 0x80, 0x3f]);
});

import type { FloatDType, Tensor, TypedArray } from "@moba-js/tensor";
import type { Check, Subject } from "./check.js";
import { rounding } from "./compare.js";
import { Random } from "./random.js";
import type { Outcome } from "./report.js";
import { withLeakOutcome } from "./trial.js";

/** Whether two arrays hold the same numbers, NaN and the sign of zero included. */
const same = (a: ArrayLike<number>, b: ArrayLike<number>): boolean =>
  a.length === b.length && Array.from(a).every((x, i) => Object.is(x, b[i]));

const outcome = (check: string, passed: boolean): Outcome => ({ check, passed });

/** Values that a careless conversion gets wrong: ties, subnormals, the ends of the range. */
function awkwardValues(dtype: FloatDType, random: Random): number[] {
  const { unit, tiny, largest } = {
    f32: { unit: 2 ** -23, tiny: 2 ** -149, largest: 2 ** 128 - 2 ** 104 },
    f16: { unit: 2 ** -10, tiny: 2 ** -24, largest: 65504 },
    bf16: { unit: 2 ** -7, tiny: 2 ** -133, largest: 2 ** 128 - 2 ** 120 },
  }[dtype];
  const positive = [
    ...[0, 1, largest, tiny, 3 * tiny, Number.POSITIVE_INFINITY],
    ...[0.5, 0.75, 1, 1.5, 2.5].map((units) => 1 + units * unit),
    ...[0.5, 0.51, 1.5, 2.5].map((units) => units * tiny),
    ...Array.from(random.gaussians(200), Math.abs),
  ];
  return [...positive, ...positive.map((x) => -x), Number.NaN];
}

/** Every bit pattern of a 16-bit dtype that is no NaN. */
function allBits(dtype: "f16" | "bf16"): Uint16Array {
  const infinity = dtype === "f16" ? 0x7c00 : 0x7f80;
  return Uint16Array.from({ length: 65536 }, (_, bits) => bits).filter((bits) => (bits & 0x7fff) <= infinity);
}

/** Uploads, reads back and disposes. */
async function roundTrip(tensor: Tensor): Promise<{ data: TypedArray; values: Float64Array }> {
  try {
    return { data: await tensor.data(), values: await tensor.values() };
  } finally {
    tensor.dispose();
  }
}

async function conversions({ backend, dtype, seed }: Subject): Promise<Outcome[]> {
  const values = awkwardValues(dtype, new Random(`${seed} tensors`));
  const uploaded = await roundTrip(backend.tensor(values, [values.length], dtype));
  const zeros = await roundTrip(backend.zeros([3, 5], dtype));
  const outcomes = [
    outcome("rounds to nearest, ties to even", same(uploaded.values, values.map(rounding(dtype)))),
    outcome("zeros", same(zeros.values, new Float64Array(15))),
  ];
  if (dtype === "f32") return outcomes;
  const bits = allBits(dtype);
  const raw = await roundTrip(backend.tensor(bits, [bits.length], dtype));
  return [...outcomes, outcome("takes 16-bit data as they are", same(raw.data, bits))];
}

async function integers({ backend }: Subject): Promise<Outcome[]> {
  const signed = [0, 1, -1, 2 ** 31 - 1, -(2 ** 31)];
  const unsigned = [0, 1, 2 ** 31, 2 ** 32 - 1];
  return [
    outcome("i32", same((await roundTrip(backend.tensor(signed, [5], "i32"))).data, signed)),
    outcome("u32", same((await roundTrip(backend.tensor(unsigned, [2, 2], "u32"))).data, unsigned)),
  ];
}

async function memory({ backend, dtype }: Subject): Promise<Outcome[]> {
  const before = backend.memory();
  const source = Float32Array.of(1, 2, 3, 4);
  const tensor = backend.tensor(source, [4], dtype);
  source.fill(0);
  const { bytes } = backend.memory();
  const view = tensor.reshape([2, 2]);
  const shares = backend.memory().bytes === bytes;
  (await tensor.data()).fill(0);
  tensor.dispose();
  const shared = await view.values();
  view.dispose();
  const kept = backend.scope(() => {
    backend.zeros([100], dtype);
    return backend.tensor([5], [1], dtype);
  });
  const afterScope = backend.memory();
  const keptValues = await kept.values();
  kept.dispose();
  const after = backend.memory();
  return [
    outcome("tensors keep their values, whatever becomes of host arrays", same(shared, [1, 2, 3, 4])),
    outcome("a reshaped tensor shares its memory", shares),
    outcome(
      "a scope keeps its result alone",
      afterScope.tensors === before.tensors + 1 && same(keptValues, [5]),
    ),
    outcome(
      "disposing gives all memory back",
      after.bytes === before.bytes && after.tensors === before.tensors,
    ),
  ];
}

async function timing({ backend, dtype }: Subject): Promise<Outcome[]> {
  let ran = 0;
  const milliseconds = await backend.time(() => {
    ran += 1;
    backend.zeros([16], dtype).dispose();
  });
  return [
    outcome("time runs its body once", ran === 1),
    outcome("time gives milliseconds", Number.isFinite(milliseconds) && milliseconds >= 0),
  ];
}

/** Memory and conversions: what every operation rests on. */
export const tensorChecks = (subject: Subject): Check[] =>
  Object.entries({ conversions, integers, memory, timing }).map(([title, body]) => ({
    title,
    needs: [],
    run: () => withLeakOutcome(subject.backend, () => body(subject)),
  }));

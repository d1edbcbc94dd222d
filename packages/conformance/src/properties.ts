import { type Backend, cuSeqlensFromLengths, type Operation, type Tensor } from "@moba-js/tensor";
import * as fc from "fast-check";
import { attentionTensors, drawProblem, type Problem } from "./cases.js";
import type { Check, Subject } from "./check.js";
import { F32_BOUND, nonFiniteMismatch, relativeError, rounding, UNIT_ROUNDOFF } from "./compare.js";
import { Random } from "./random.js";
import type { Outcome } from "./report.js";
import { compute, withLeakOutcome } from "./trial.js";

/** Random problems that each property is tried on. */
const RUNS = 12;

/** A random small problem: fast-check draws the shape and shrinks it, the data follow from `data`. */
const SHAPES = fc.record({
  lengths: fc.array(fc.integer({ min: 0, max: 20 }), { minLength: 1, maxLength: 3 }),
  /** Keys that each sequence has more than queries. */
  moreKeys: fc.integer({ min: 0, max: 9 }),
  kvHeads: fc.integer({ min: 1, max: 2 }),
  group: fc.integer({ min: 1, max: 3 }),
  headDim: fc.integer({ min: 1, max: 9 }),
  blockSize: fc.integer({ min: 1, max: 9 }),
  topK: fc.integer({ min: 1, max: 4 }),
  causal: fc.boolean(),
  data: fc.nat(),
});

type Shape = typeof SHAPES extends fc.Arbitrary<infer T> ? T : never;

function problemOf({ moreKeys, group, data, ...shape }: Shape, subject: Subject): Problem {
  const keyLengths = shape.lengths.map((length) => length + moreKeys);
  return drawProblem({ ...shape, name: `${data}`, keyLengths, heads: shape.kvHeads * group }, subject);
}

/** An attention's results on the host. */
interface Results {
  readonly out: Float64Array;
  readonly lse: Float64Array;
}

/** A way to attend, with all options said. */
interface Forward {
  readonly name: string;
  readonly needs: readonly Operation[];
  run(backend: Backend, problem: Problem, q: Tensor, k: Tensor, v: Tensor): Record<string, Tensor>;
}

const DENSE: Forward = {
  name: "attention",
  needs: ["attention"],
  run: (backend, { cuSeqlens, cuSeqlensK, causal, scale }, q, k, v) => ({
    ...backend.attention(q, k, v, { cuSeqlens, cuSeqlensK, causal, scale }),
  }),
};

const WINDOW: Forward = {
  name: "windowAttention",
  needs: ["windowAttention"],
  run: (backend, { cuSeqlens, cuSeqlensK, blockSize: window, scale }, q, k, v) => ({
    ...backend.windowAttention(q, k, v, { cuSeqlens, cuSeqlensK, window, scale }),
  }),
};

const MOBA: Forward = {
  name: "moba",
  needs: ["route", "attend"],
  run: (backend, { cuSeqlens, cuSeqlensK, blockSize, topK, causal, scale }, q, k, v) => {
    const options = { cuSeqlens, cuSeqlensK, blockSize, topK, causal, scale };
    const { out, lse, routing } = backend.moba(q, k, v, options);
    return { out, lse, indices: routing.indices };
  },
};

async function attend({ backend }: Subject, forward: Forward, problem: Problem): Promise<Results> {
  const { out, lse } = await compute(backend, {
    inputs: attentionTensors(problem),
    run: ({ q, k, v }) => forward.run(backend, problem, q, k, v),
  });
  return { out: out.values, lse: lse.values };
}

/** What must be equal on every problem. `random` follows from the problem's data. */
interface Property {
  readonly name: string;
  readonly needs: readonly Operation[];
  sides(subject: Subject, problem: Problem, random: Random): Promise<readonly [Results, Results]>;
}

const LIMITS: readonly Property[] = [
  {
    name: "k ≥ n is dense attention",
    needs: [...MOBA.needs, ...DENSE.needs],
    sides: async (subject, problem) => [
      await attend(subject, MOBA, { ...problem, topK: 1000 }),
      await attend(subject, DENSE, problem),
    ],
  },
  {
    name: "w ≥ Nk is dense causal attention",
    needs: [...WINDOW.needs, ...DENSE.needs],
    sides: async (subject, problem) => [
      await attend(subject, WINDOW, { ...problem, blockSize: 1000 }),
      await attend(subject, DENSE, { ...problem, causal: true }),
    ],
  },
];

/** `x [rows, heads, width]` with head `h` taken from head `source[h]`. */
function permuteHeads(x: Float64Array, source: readonly number[], width: number): Float64Array {
  const step = source.length * width;
  return x.map((_, i) => {
    const head = Math.floor((i % step) / width);
    return x[i + (source[head] - head) * width];
  });
}

/** Permuting key heads, and the query heads of each, permutes the results. */
const permutingHeads = (forward: Forward): Property => ({
  name: `${forward.name}: permuting heads permutes outputs`,
  needs: forward.needs,
  sides: async (subject, problem, random) => {
    const { q, k, v, heads, kvHeads, headDim } = problem;
    const group = heads / kvHeads;
    const keySource = random.shuffled(Array.from({ length: kvHeads }, (_, head) => head));
    const withinGroup = random.shuffled(Array.from({ length: group }, (_, g) => g));
    const source = keySource.flatMap((keyHead) => withinGroup.map((g) => keyHead * group + g));
    const permuted = {
      ...problem,
      q: permuteHeads(q, source, headDim),
      k: permuteHeads(k, keySource, headDim),
      v: permuteHeads(v, keySource, headDim),
    };
    const { out, lse } = await attend(subject, forward, problem);
    const expected = { out: permuteHeads(out, source, headDim), lse: permuteHeads(lse, source, 1) };
    return [await attend(subject, forward, permuted), expected];
  },
});

/** Sequence `s` of a problem by itself. */
function alone(problem: Problem, s: number): Problem {
  const { q, k, v, heads, kvHeads, headDim, cuSeqlens, cuSeqlensK } = problem;
  const keys = (x: Float64Array) =>
    x.slice(cuSeqlensK[s] * kvHeads * headDim, cuSeqlensK[s + 1] * kvHeads * headDim);
  return {
    ...problem,
    q: q.slice(cuSeqlens[s] * heads * headDim, cuSeqlens[s + 1] * heads * headDim),
    k: keys(k),
    v: keys(v),
    cuSeqlens: cuSeqlensFromLengths([cuSeqlens[s + 1] - cuSeqlens[s]]),
    cuSeqlensK: cuSeqlensFromLengths([cuSeqlensK[s + 1] - cuSeqlensK[s]]),
  };
}

const concatenate = (parts: readonly Float64Array[]): Float64Array =>
  Float64Array.from(parts.flatMap((part) => [...part]));

const packingSequences = (forward: Forward): Property => ({
  name: `${forward.name}: packed sequences equal each alone`,
  needs: forward.needs,
  sides: async (subject, problem) => {
    const parts: Results[] = [];
    for (let s = 0; s + 1 < problem.cuSeqlens.length; s++) {
      parts.push(await attend(subject, forward, alone(problem, s)));
    }
    const apart = {
      out: concatenate(parts.map(({ out }) => out)),
      lse: concatenate(parts.map(({ lse }) => lse)),
    };
    return [await attend(subject, forward, problem), apart];
  },
});

/** In each sequence: keys and values from a random position on are replaced, results of queries before it compared. */
const futureKeys = (forward: Forward): Property => ({
  name: `${forward.name}: a future key never changes a past output`,
  needs: forward.needs,
  sides: async (subject, original, random) => {
    const problem = { ...original, causal: true };
    const { k, v, kvHeads, heads, headDim, cuSeqlens, cuSeqlensK, dtype } = problem;
    const [changedK, changedV] = [k.slice(), v.slice()];
    const pastRows: number[] = [];
    for (let s = 0; s + 1 < cuSeqlens.length; s++) {
      const keys = cuSeqlensK[s + 1] - cuSeqlensK[s];
      const cut = random.integer(0, keys);
      const begin = (cuSeqlensK[s] + cut) * kvHeads * headDim;
      for (let i = begin; i < cuSeqlensK[s + 1] * kvHeads * headDim; i++) {
        changedK[i] = rounding(dtype)(20 * random.next() - 10);
        changedV[i] = rounding(dtype)(20 * random.next() - 10);
      }
      // Query i sits at position i + Nk − Nq.
      const past = Math.max(0, cut - keys + cuSeqlens[s + 1] - cuSeqlens[s]);
      for (let row = 0; row < past * heads; row++) pastRows.push(cuSeqlens[s] * heads + row);
    }
    const past = ({ out, lse }: Results): Results => ({
      out: concatenate(pastRows.map((row) => out.subarray(row * headDim, (row + 1) * headDim))),
      lse: Float64Array.from(pastRows, (row) => lse[row]),
    });
    const changed = await attend(subject, forward, { ...problem, k: changedK, v: changedV });
    return [past(changed), past(await attend(subject, forward, problem))];
  },
});

/** Only the product of queries and scale counts. Doubling and halving are exact in every dtype. */
const scalingQueries = (forward: Forward): Property => ({
  name: `${forward.name}: doubled queries at half the scale change nothing`,
  needs: forward.needs,
  sides: async (subject, problem) => {
    const doubled = { ...problem, q: problem.q.map((x) => 2 * x), scale: problem.scale / 2 };
    return [await attend(subject, forward, doubled), await attend(subject, forward, problem)];
  },
});

const PROPERTIES: readonly Property[] = [
  ...LIMITS,
  ...[DENSE, WINDOW, MOBA].flatMap((forward) => [
    permutingHeads(forward),
    packingSequences(forward),
    futureKeys(forward),
    scalingQueries(forward),
  ]),
];

/** By how much two results differ; infinite where one is not finite and the other is something else. */
function difference([actual, expected]: readonly [Results, Results]): number {
  const parts = [
    { x: actual.out, ref: expected.out, floor: 0 },
    { x: actual.lse, ref: expected.lse, floor: 1 },
  ];
  return Math.max(
    ...parts.map(({ x, ref, floor }) =>
      nonFiniteMismatch(x, ref) >= 0 ? Number.POSITIVE_INFINITY : relativeError(x, ref, floor),
    ),
  );
}

/** Two results within their bounds may differ by twice the bound: 1e-5, or on few rows about three unit roundoffs. */
const allowedDifference = ({ dtype }: Subject): number =>
  2 * (dtype === "f32" ? F32_BOUND : 3 * UNIT_ROUNDOFF[dtype]);

async function tryProperty(subject: Subject, property: Property): Promise<Outcome> {
  const allowed = allowedDifference(subject);
  let measured = 0;
  const holds = fc.asyncProperty(SHAPES, async (shape) => {
    const random = new Random(`${shape.data} ${property.name}`);
    const sides = await property.sides(subject, problemOf(shape, subject), random);
    const found = difference(sides);
    if (!(found <= allowed)) throw new Error(`difference ${found.toExponential(2)}`);
    measured = Math.max(measured, found);
  });
  const { failed, counterexample, errorInstance } = await fc.check(holds, {
    seed: subject.seed,
    numRuns: RUNS,
  });
  if (!failed) return { check: "holds", passed: true, measured, allowed };
  const message = `not for ${JSON.stringify(counterexample?.[0])}: ${errorInstance}, allowed ${allowed.toExponential(2)}`;
  return { check: "holds", passed: false, message };
}

/** Properties that hold on every problem, tried on random shapes. */
export const propertyChecks = (subject: Subject): Check[] =>
  PROPERTIES.map((property) => ({
    title: property.name,
    needs: property.needs,
    run: () => withLeakOutcome(subject.backend, async () => [await tryProperty(subject, property)]),
  }));

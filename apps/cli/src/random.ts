import { createHash } from "node:crypto";
import { xoroshiro128plusFromState } from "pure-rand/generator/xoroshiro128plus";

/** A stream of random numbers. */
export type Generator = ReturnType<typeof xoroshiro128plusFromState>;

/** The generator of a name: its state is the name's SHA-256, so that streams of different names are independent. */
export function generator(...name: readonly (string | number)[]): Generator {
  const digest = createHash("sha256").update(name.join("\0")).digest();
  return xoroshiro128plusFromState([0, 4, 8, 12].map((offset) => digest.readInt32LE(offset)));
}

/** Uniform in [0, 1). */
export const uniform = (random: Generator): number => (random.next() >>> 0) / 2 ** 32;

/** A uniform integer from 0 to `below − 1`. */
export const integer = (random: Generator, below: number): number => Math.floor(uniform(random) * below);

/** Standard normal values (Box-Muller). */
export function gaussians(random: Generator, count: number): Float32Array {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform(random)));
    const angle = 2 * Math.PI * uniform(random);
    values[i] = radius * Math.cos(angle);
    if (i + 1 < count) values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}

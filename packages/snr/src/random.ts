import { mersenne } from "pure-rand/generator/mersenne";
import { xoroshiro128plusFromState } from "pure-rand/generator/xoroshiro128plus";
import { checkInteger } from "./check.js";

/** The layers of the ziggurat: x[i] is the right edge of layer i, ratio[i] = x[i + 1] / x[i]. */
interface Ziggurat {
  readonly x: Float64Array;
  readonly ratio: Float64Array;
}

const LAYERS = 128;
/** Where the tail begins, and the area of each layer, for 128 layers (Marsaglia & Tsang 2000). */
const TAIL_START = 3.442619855899;
const LAYER_AREA = 9.91256303526217e-3;

let sharedZiggurat: Ziggurat | undefined;

/** The ziggurat's table, made on first use so that importing this module does no work. */
function ziggurat(): Ziggurat {
  if (sharedZiggurat) return sharedZiggurat;
  const x = new Float64Array(LAYERS + 1);
  const density = (at: number) => Math.exp(-0.5 * at * at);
  x[0] = LAYER_AREA / density(TAIL_START);
  x[1] = TAIL_START;
  for (let i = 2; i < LAYERS; i++) {
    x[i] = Math.sqrt(-2 * Math.log(LAYER_AREA / x[i - 1] + density(x[i - 1])));
  }
  const ratio = new Float64Array(LAYERS);
  for (let i = 0; i < LAYERS; i++) ratio[i] = x[i + 1] / x[i];
  sharedZiggurat = { x, ratio };
  return sharedZiggurat;
}

/** A seeded stream of random numbers (xoroshiro128+): the same seed gives the same stream everywhere. */
export class Random {
  readonly #generator: ReturnType<typeof xoroshiro128plusFromState>;
  readonly #ziggurat = ziggurat();

  /**
   * @param seed an integer; its low 32 bits count.
   * @throws ArgumentError if `seed` is not an integer ≥ 0.
   */
  constructor(seed: number) {
    checkInteger("seed", seed, 0);
    // Xoroshiro is twice as fast, but started from neighbouring seeds its streams resemble each other.
    const seeder = mersenne(seed);
    this.#generator = xoroshiro128plusFromState(Array.from({ length: 4 }, () => seeder.next()));
  }

  /** A uniform number in [0, 1), a multiple of 2⁻³². */
  uniform(): number {
    return (this.#generator.next() >>> 0) / 2 ** 32;
  }

  /** A uniform integer in [0, `below`). */
  integer(below: number): number {
    return Math.floor(this.uniform() * below);
  }

  /** A standard normal number, by the ziggurat method (Marsaglia & Tsang 2000, in the form of Doornik 2005). */
  normal(): number {
    const generator = this.#generator;
    const { x, ratio } = this.#ziggurat;
    for (;;) {
      // Separate draws for layer and position (taking both from one is known to show), and the high bits for the layer.
      const layer = generator.next() >>> 25;
      const position = (generator.next() + 0.5) / 2 ** 31;
      if (Math.abs(position) < ratio[layer]) return position * x[layer];
      const rare = layer === 0 ? this.#tail(position < 0) : this.#edge(layer, position * x[layer]);
      if (rare !== undefined) return rare;
    }
  }

  /** A point between a layer's inner and outer rectangle: itself if it lies under the density, else undefined. */
  #edge(layer: number, at: number): number | undefined {
    const { x } = this.#ziggurat;
    const outer = Math.exp(-0.5 * (x[layer] * x[layer] - at * at));
    const inner = Math.exp(-0.5 * (x[layer + 1] * x[layer + 1] - at * at));
    return inner + this.uniform() * (outer - inner) < 1 ? at : undefined;
  }

  /** A normal number given that it lies beyond TAIL_START (Marsaglia 1964). */
  #tail(negative: boolean): number {
    for (;;) {
      const excess = -Math.log(1 - this.uniform()) / TAIL_START;
      if (-2 * Math.log(1 - this.uniform()) > excess * excess) {
        return negative ? -TAIL_START - excess : TAIL_START + excess;
      }
    }
  }
}

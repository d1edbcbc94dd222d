import { DeviceError } from "@moba-js/tensor";

/** The shape of a workgroup's tiles; names as in `tile.wgsl`. */
export interface Tile {
  /** Rows of the tile that the workgroup owns. */
  readonly BQ: number;
  /** Rows of the tiles that pass by. */
  readonly BK: number;
  /** Rows of each thread. */
  readonly RQ: number;
}

/** How many tiles a kernel keeps in workgroup memory. */
export interface TileNeeds {
  /** Tiles of `BQ` rows. */
  readonly owned: number;
  /** Tiles of `BK` rows. */
  readonly passing: number;
  /** Tiles of `BQ × BK` weights. */
  readonly weights: number;
  /** Other bytes for each row of the larger tile. */
  readonly bytesPerRow?: number;
  /** Threads that share a row, at most: those of a subgroup. Default: any number. */
  readonly rowThreads?: number;
}

/** What a device allows a workgroup. */
export interface WorkgroupLimits {
  readonly storage: number;
  readonly invocations: number;
}

/** Shapes to choose from, the best first: as measured, see `NOTES.md`. */
const SHAPES: readonly Tile[] = [
  { BQ: 32, BK: 32, RQ: 2 },
  { BQ: 32, BK: 16, RQ: 2 },
  { BQ: 16, BK: 16, RQ: 2 },
  { BQ: 16, BK: 8, RQ: 2 },
  { BQ: 8, BK: 8, RQ: 1 },
  { BQ: 8, BK: 4, RQ: 1 },
  { BQ: 4, BK: 4, RQ: 1 },
  { BQ: 1, BK: 4, RQ: 1 },
];

/** Rows shorter than this get no larger tiles: one shape for all small head dimensions. */
const SMALL_ROW = 16;

/** Groups of four channels that a row of tiles is made for: few different ones, so that few pipelines are compiled. */
const ROW_QUADS: readonly number[] = [4, 8, 16, 24, 32, 48, 64];

/** Groups of four channels that a thread fetches side by side, at most: each waits for memory as long as all do. */
const MOST_FETCHED = 8;

/** Groups of channels that are written out in a row (`CHUNK`); divides every `DQ`. */
const CHUNK = 4;

/** `DQ` of a head dimension. */
export function rowQuads(headDim: number): number {
  const quads = Math.ceil(headDim / 4);
  return ROW_QUADS.find((size) => size >= quads) ?? Math.ceil(quads / CHUNK) * CHUNK;
}

/** Room for what is not by rows: the note of what is not finite. */
const FLAGS = 16;

/** Bytes that the tiles take. */
function storageOf({ BQ, BK }: Tile, quads: number, needs: TileNeeds): number {
  const rowBytes = 16 * (quads + 1);
  const weightRowBytes = 16 * (BK / 4 + 1);
  const partials = BQ * BK;
  const rows = needs.owned * BQ * rowBytes + needs.passing * BK * rowBytes;
  const notes = (needs.bytesPerRow ?? 0) * Math.max(BQ, BK) + FLAGS;
  return rows + needs.weights * BQ * weightRowBytes + partials + notes;
}

/**
 * The largest tiles that a device has room for.
 * @throws DeviceError when there is none: the head dimension is too large.
 */
export function chooseTile(limits: WorkgroupLimits, headDim: number, needs: TileNeeds): Tile {
  const quads = Math.max(SMALL_ROW, rowQuads(headDim));
  const tile = SHAPES.find(
    (shape) =>
      shape.BK / 4 <= (needs.rowThreads ?? Number.POSITIVE_INFINITY) &&
      storageOf(shape, quads, needs) <= limits.storage &&
      (shape.BQ / shape.RQ) * (shape.BK / 4) <= limits.invocations,
  );
  if (!tile) {
    throw new DeviceError(
      "webgpu",
      `a head dimension of ${headDim} does not fit into the device's workgroup memory`,
    );
  }
  return tile;
}

/**
 * The constants of `tile.wgsl`.
 * @param rowThreads threads of a subgroup, where those of a row have to lie in one
 */
export function tileConstants(
  { BQ, BK, RQ }: Tile,
  headDim: number,
  rowThreads = Number.POSITIVE_INFINITY,
): Record<string, number | boolean> {
  const [DQ, NX, TY] = [rowQuads(headDim), BK / 4, BQ / RQ];
  const INTERLEAVED = NX === 8 && TY % 4 === 0 && rowThreads >= 32;
  const [owned, passing] = [BQ, BK].map((rows) => (rows * DQ) / (NX * TY)); // groups that a thread fetches of a tile
  let FETCHED = Math.min(MOST_FETCHED, passing);
  while (owned % FETCHED > 0 || passing % FETCHED > 0) FETCHED -= 1;
  const turns = { FETCHED, OWNED_TURNS: owned / FETCHED, PASSING_TURNS: passing / FETCHED };
  return { DQ, BQ, BK, RQ, NX, TY, CQ: Math.ceil(DQ / NX), CHUNK, ...turns, INTERLEAVED };
}

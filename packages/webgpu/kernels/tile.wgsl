// Products of two tiles of rows in workgroup memory. The workgroup is a grid of threads: thread (ty, tx) owns the tile's
// rows ty, ty + TY, … (RQ of them); of the other tile's BK = 4·NX rows it scores the four 4·tx … 4·tx + 3, and it
// accumulates channels in groups of four: tx, tx + NX, … (CQ groups).
//
// A row in workgroup memory is DQ groups of four channels and one group more, so that threads that read the same channels of
// neighbouring rows hit different banks. The other tile is stored with row j at place (j % 4)·NX + j / 4 for the same reason.

const ROW = DQ + 1u;
const WEIGHT_ROW = NX + 1u;
const THREADS = NX * TY;

// exp2 of this is 0 and it is below every score: what masked scores and empty rows have. WGSL has no literal for infinity.
const LOWEST = -3.0e38;
const MINUS_INFINITY = 0xff800000u;
const LOG2_E = 1.4426950408889634;
const LN_2 = 0.6931471805599453;

// Rows of their own, so that what keeps an index inside them is worked out once a row, not for every load.
var<workgroup> tiles: array<array<vec4<f32>, ROW>, TILE_ROWS>;
var<workgroup> weightTiles: array<array<vec4<f32>, WEIGHT_ROW>, WEIGHT_ROWS>;

// A thread's column tx and row ty of the grid. INTERLEAVED, their bits take turns from the lowest on: the lanes that NVIDIA's shared
// memory serves together then lie in a square of the grid and read few different rows of either tile.
fn columnOf(thread: u32) -> u32 {
  if (!INTERLEAVED) { return thread % NX; }
  return (thread & 1u) | ((thread >> 1u) & 2u) | ((thread >> 2u) & 4u);
}

fn rowOf(thread: u32) -> u32 {
  if (!INTERLEAVED) { return thread / NX; }
  return ((thread >> 1u) & 1u) | ((thread >> 2u) & 2u) | ((thread >> 5u) << 2u);
}

// The group of channels, of those of a tile row by row, that a thread fetches at place n of a turn. All of a turn are fetched before the
// first is stored, so that a thread waits once for them; rows that do not exist are fetched from one that does.
fn fetchedAt(turn: u32, n: u32, thread: u32) -> u32 { return (turn * FETCHED + n) * THREADS + thread; }

fn place(j: u32) -> u32 { return (j & 3u) * NX + (j >> 2u); }

// scores[i][e] = row (ty + TY·i) of the tile at `a` · row (4·tx + e) of the tile at `b`.
fn scoreRows(a: u32, b: u32, tx: u32, ty: u32, scores: ptr<function, array<vec4<f32>, RQ>>) {
  @unroll for (var i = 0u; i < RQ; i++) { (*scores)[i] = vec4<f32>(); }
  for (var turn = 0u; turn < DQ / CHUNK; turn++) {
    @unroll for (var n = 0u; n < CHUNK; n++) {
      let c = turn * CHUNK + n;
      let y0 = tiles[b + tx][c];
      let y1 = tiles[b + NX + tx][c];
      let y2 = tiles[b + 2u * NX + tx][c];
      let y3 = tiles[b + 3u * NX + tx][c];
      @unroll for (var i = 0u; i < RQ; i++) {
        let x = tiles[a + ty + TY * i][c];
        var s = (*scores)[i];
        s = fma(vec4<f32>(x.x), vec4<f32>(y0.x, y1.x, y2.x, y3.x), s);
        s = fma(vec4<f32>(x.y), vec4<f32>(y0.y, y1.y, y2.y, y3.y), s);
        s = fma(vec4<f32>(x.z), vec4<f32>(y0.z, y1.z, y2.z, y3.z), s);
        s = fma(vec4<f32>(x.w), vec4<f32>(y0.w, y1.w, y2.w, y3.w), s);
        (*scores)[i] = s;
      }
    }
  }
}

// Weights of a thread's rows and its four of the other tile's rows, for accumulate.
fn storeWeights(at: u32, tx: u32, ty: u32, weights: ptr<function, array<vec4<f32>, RQ>>) {
  @unroll for (var i = 0u; i < RQ; i++) { weightTiles[at + ty + TY * i][tx] = (*weights)[i]; }
}

// sums[i·CQ + n] += Σ_j weights[ty + TY·i][j] · row j of the tile at `b`, channels of group tx + NX·n.
fn accumulate(weights: u32, b: u32, tx: u32, ty: u32, sums: ptr<function, array<vec4<f32>, RQ * CQ>>) {
  for (var j = 0u; j < NX; j++) {
    var w: array<vec4<f32>, RQ>;
    @unroll for (var i = 0u; i < RQ; i++) { w[i] = weightTiles[weights + ty + TY * i][j]; }
    @unroll for (var n = 0u; n < CQ; n++) {
      let c = min(tx + NX * n, DQ - 1u);
      let y0 = tiles[b + j][c];
      let y1 = tiles[b + NX + j][c];
      let y2 = tiles[b + 2u * NX + j][c];
      let y3 = tiles[b + 3u * NX + j][c];
      @unroll for (var i = 0u; i < RQ; i++) {
        var s = (*sums)[i * CQ + n];
        s = fma(vec4<f32>(w[i].x), y0, s);
        s = fma(vec4<f32>(w[i].y), y1, s);
        s = fma(vec4<f32>(w[i].z), y2, s);
        s = fma(vec4<f32>(w[i].w), y3, s);
        (*sums)[i * CQ + n] = s;
      }
    }
  }
}

// accumulate over the rows of the other tile that each row sees: low ≤ first + j < high; the weights of the others are 0.
fn accumulateVisible(
  weights: u32, b: u32, tx: u32, ty: u32,
  low: ptr<function, array<i32, RQ>>, high: ptr<function, array<i32, RQ>>, first: i32,
  sums: ptr<function, array<vec4<f32>, RQ * CQ>>,
) {
  if (atomicLoad(&nonFinite) == 0u) {
    accumulate(weights, b, tx, ty, sums);
    return;
  }
  for (var j = 0u; j < BK; j++) {
    @unroll for (var n = 0u; n < CQ; n++) {
      let y = tiles[b + place(j)][min(tx + NX * n, DQ - 1u)];
      @unroll for (var i = 0u; i < RQ; i++) {
        let w = weightTiles[weights + ty + TY * i][j >> 2u][j & 3u];
        let isSeen = first + i32(j) >= (*low)[i] && first + i32(j) < (*high)[i];
        let s = (*sums)[i * CQ + n];
        (*sums)[i * CQ + n] = select(s, fma(vec4<f32>(w), y, s), isSeen);
      }
    }
  }
}

// Whether each of the four rows that a thread scores, from `first` on, is among those that a row of its own sees.
fn visible(low: i32, high: i32, first: i32) -> vec4<bool> {
  let j = vec4<i32>(first) + vec4<i32>(0, 1, 2, 3);
  return (j >= vec4<i32>(low)) & (j < vec4<i32>(high));
}

// Matrix products on tensor cores (mma.sync): f16 and bf16, either factor transposed. The rows of what is stored are
// multiples of 16 bytes.
//
// A CTA takes a tile of 128 × 128 elements of the product, a warp 64 × 32 of them; tiles of the factors pass through three
// stages of shared memory. Products of few tiles and a long sum are cut along the sum: each part is summed by itself, and
// column_sums adds the parts in their order.
#include "common/pairs.cuh"
#include "common/shared.cuh"
#include "common/tile.cuh"
#include "ptx/mma.cuh"

constexpr int THREADS = 256;
constexpr int TILE = 128;  // rows and columns of the product
constexpr int DEPTH = 32;  // of the summed extent, at a time
constexpr int STAGES = 3;
constexpr int FACTOR_BYTES = TILE * DEPTH * 2;
constexpr int STAGE_BYTES = 2 * FACTOR_BYTES;
constexpr int M_TILES = 4;  // of 16 rows, of a warp
constexpr int N_TILES = 4;  // of 8 columns, of a warp
// CTAs that follow each other take this many tiles of rows with the same columns: what they read stays in the L2 cache.
constexpr int ROWS_TOGETHER = 8;

// A factor: element (i, k), i along the product, lies at i · depth + k, or at k · extent + i when `Turned`.
template <typename T, bool Turned>
struct Factor {
  using Rows = Tile<Turned ? TILE : DEPTH>;

  const T* elements;
  int extent;
  int depth;

  // All threads copy the tile from (first_i, first_k) on; from `end_k` on and beyond the matrix there are zeros.
  __device__ __forceinline__ void copy(uint32_t tile, int first_i, int first_k, int end_k) const {
#pragma unroll
    for (int at = threadIdx.x; at < FACTOR_BYTES / 16; at += THREADS) {
      const int row = at / Rows::PIECES, piece = at % Rows::PIECES;
      const int i = first_i + (Turned ? piece * 8 : row), k = first_k + (Turned ? row : piece * 8);
      const bool there = i < extent && k < end_k;
      const long long offset = Turned ? static_cast<long long>(k) * extent + i : static_cast<long long>(i) * depth + k;
      ptx::copy_16_or_zero(tile + Rows::offset(row, piece), elements + (there ? offset : 0), there);
    }
  }

  // The 16 × 16 elements from (i, k) of the tile on, i in the rows of an m16 fragment.
  __device__ __forceinline__ static void load_rows(uint32_t (&r)[4], uint32_t tile, int i, int k) {
    const int lane = lane_id();
    if (Turned) {
      ptx::ldmatrix_x4_transposed(r, tile + Rows::offset(k + lane % 8 + lane / 16 * 8, i / 8 + lane / 8 % 2));
    } else {
      ptx::ldmatrix_x4(r, tile + Rows::offset(i + lane % 16, k / 8 + lane / 16));
    }
  }

  // The same, i in the columns of two n8 fragments.
  __device__ __forceinline__ static void load_columns(uint32_t (&r)[4], uint32_t tile, int i, int k) {
    const int lane = lane_id();
    if (Turned) {
      ptx::ldmatrix_x4_transposed(r, tile + Rows::offset(k + lane % 16, i / 8 + lane / 16));
    } else {
      ptx::ldmatrix_x4(r, tile + Rows::offset(i + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
    }
  }
};

// Two neighbouring elements of a row of `columns`, of which those beyond the row are left out.
template <typename T>
__device__ __forceinline__ void store_pair(T* row, int column, int columns, float x, float y) {
  if (column < columns) row[column] = from_float<T>(x);
  if (column + 1 < columns) row[column + 1] = from_float<T>(y);
}

// a: [rows, inner], or turned. b: [inner, columns], or turned. out: [rows, columns]. parts: float32 [gridDim.y, rows, columns];
// null: there is one part, and it goes to `out`. A part is `part` of the summed extent, a multiple of DEPTH.
// Grid: (tiles of rows · tiles of columns, parts).
template <typename T, bool TurnedA, bool TurnedB>
__device__ __forceinline__ void sm80_matmul(const T* __restrict__ a, const T* __restrict__ b, T* out, float* parts,
                                            int rows, int columns, int inner, int part) {
  const int row_tiles = rows / TILE + (rows % TILE != 0), column_tiles = columns / TILE + (columns % TILE != 0);
  const int band = ROWS_TOGETHER * column_tiles, first_of_band = blockIdx.x / band * ROWS_TOGETHER;
  const int rows_of_band = min(ROWS_TOGETHER, row_tiles - first_of_band);
  const int first_row = (first_of_band + blockIdx.x % band % rows_of_band) * TILE;
  const int first_column = blockIdx.x % band / rows_of_band * TILE;
  const Factor<T, TurnedA> x{a, rows, inner};
  const Factor<T, TurnedB> y{b, columns, inner};
  const int begin = blockIdx.y * part, end = begin + min(part, inner - begin);
  const int steps = (end - begin + DEPTH - 1) / DEPTH;
  const uint32_t shared = static_cast<uint32_t>(__cvta_generic_to_shared(sharedMemory));
  const int warp_row = warp_id() / 4 * 64, warp_column = warp_id() % 4 * 32;

  // A group of copies for every step, empty after the last one.
  const auto copy_step = [&](int step) {
    if (step < steps) {
      const uint32_t stage = shared + step % STAGES * STAGE_BYTES;
      x.copy(stage, first_row, begin + step * DEPTH, end);
      y.copy(stage + FACTOR_BYTES, first_column, begin + step * DEPTH, end);
    }
    ptx::copy_commit();
  };

  float sum[M_TILES][N_TILES][4] = {};
#pragma unroll
  for (int step = 0; step < STAGES - 1; step++) copy_step(step);
  for (int step = 0; step < steps; step++) {
    ptx::copy_wait<STAGES - 2>();
    __syncthreads();  // this step's tiles are there, and those of the step before have been read
    copy_step(step + STAGES - 1);
    const uint32_t left = shared + step % STAGES * STAGE_BYTES, right = left + FACTOR_BYTES;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
      uint32_t u[M_TILES][4], v[N_TILES / 2][4];
#pragma unroll
      for (int m = 0; m < M_TILES; m++) x.load_rows(u[m], left, warp_row + 16 * m, k);
#pragma unroll
      for (int n = 0; n < N_TILES / 2; n++) y.load_columns(v[n], right, warp_column + 16 * n, k);
#pragma unroll
      for (int m = 0; m < M_TILES; m++)
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
          ptx::mma_m16n8k16(sum[m][n], u[m], v[n / 2][n % 2 * 2], v[n / 2][n % 2 * 2 + 1], T{});
        }
    }
  }

#pragma unroll
  for (int m = 0; m < M_TILES; m++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int row = first_row + warp_row + 16 * m + 8 * i + lane_id() / 4;
      if (row >= rows) continue;
#pragma unroll
      for (int n = 0; n < N_TILES; n++) {
        const int column = first_column + warp_column + 8 * n + lane_id() % 4 * 2;
        const float first = sum[m][n][2 * i], second = sum[m][n][2 * i + 1];
        if (parts != nullptr) {
          float* target = parts + (static_cast<long long>(blockIdx.y) * rows + row) * columns;
          store_pair(target, column, columns, first, second);
        } else {
          store_pair(out + static_cast<long long>(row) * columns, column, columns, first, second);
        }
      }
    }
}

#define SM80_MATMUL(NAME, T, TURNED_A, TURNED_B)                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                          \
      NAME(const T* a, const T* b, T* out, float* parts, int rows, int columns, int inner, int part) {              \
    sm80_matmul<T, TURNED_A, TURNED_B>(a, b, out, parts, rows, columns, inner, part);                               \
  }

// Named by what is transposed; b as it is lies turned.
SM80_MATMUL(sm80_matmul_f16, f16, false, true)
SM80_MATMUL(sm80_matmul_f16_b, f16, false, false)
SM80_MATMUL(sm80_matmul_f16_a, f16, true, true)
SM80_MATMUL(sm80_matmul_f16_ab, f16, true, false)
SM80_MATMUL(sm80_matmul_bf16, bf16, false, true)
SM80_MATMUL(sm80_matmul_bf16_b, bf16, false, false)
SM80_MATMUL(sm80_matmul_bf16_a, bf16, true, true)
SM80_MATMUL(sm80_matmul_bf16_ab, bf16, true, false)

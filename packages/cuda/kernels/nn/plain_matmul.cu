// Matrix products on the float32 units: any dtype and size, either factor transposed. A CTA takes a tile of 64 × 64
// elements of the product, a thread 4 × 4 of them; tiles of the factors pass through shared memory as float32.
#include "common/elements.cuh"

constexpr int THREADS = 256;
constexpr int TILE = 64;   // rows and columns of the product
constexpr int DEPTH = 16;  // of the summed extent, at a time
constexpr int STRIDE = TILE + 4;

// A factor: element (i, k), i along the product, lies at i · depth + k, or at k · extent + i when `turned`.
template <typename T>
struct Factor {
  const T* elements;
  int extent;
  int depth;
  bool turned;

  // Rows of what is stored are multiples of 16 bytes.
  __device__ __forceinline__ bool aligned() const { return (turned ? extent : depth) % PER_16_BYTES<T> == 0; }

  // Brings the elements from (first_i, first_k) on to target[k][i]; beyond the matrix there are zeros.
  template <int V>
  __device__ __forceinline__ void stage(float (*target)[STRIDE], int first_i, int first_k) const {
    const int across = turned ? TILE : DEPTH;
    for (int at = threadIdx.x * V; at < TILE * DEPTH; at += THREADS * V) {
      const int i = turned ? at % across : at / across, k = turned ? at / across : at % across;
      float x[V] = {};
      if (first_i + i < extent && first_k + k < depth) {
        const long long row = turned ? first_k + k : first_i + i;
        unpack(x, load<T, V>(elements + row * (turned ? extent : depth) + (turned ? first_i + i : first_k + k)));
      }
#pragma unroll
      for (int c = 0; c < V; c++) {
        if (turned) target[k][i + c] = x[c];
        else target[k + c][i] = x[c];
      }
    }
  }
};

// a: [rows, inner], or turned. b: [inner, columns], or turned. out: [rows, columns].
// Grid: (tiles of rows · tiles of columns).
template <typename T>
__device__ __forceinline__ void plain_matmul(const T* __restrict__ a, const T* __restrict__ b, T* out, int rows,
                                             int columns, int inner, int transpose_a, int transpose_b) {
  __shared__ __align__(16) float left[DEPTH][STRIDE], right[DEPTH][STRIDE];
  const int column_tiles = columns / TILE + (columns % TILE != 0);
  const int first_row = blockIdx.x / column_tiles * TILE, first_column = blockIdx.x % column_tiles * TILE;
  const Factor<T> x{a, rows, inner, transpose_a != 0}, y{b, columns, inner, transpose_b == 0};
  const int row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;  // of the thread's elements in the tile

  float sum[4][4] = {};
  for (int k = 0; k < inner; k += DEPTH) {
    __syncthreads();
    if (x.aligned()) x.template stage<PER_16_BYTES<T>>(left, first_row, k);
    else x.template stage<1>(left, first_row, k);
    if (y.aligned()) y.template stage<PER_16_BYTES<T>>(right, first_column, k);
    else y.template stage<1>(right, first_column, k);
    __syncthreads();
#pragma unroll
    for (int step = 0; step < DEPTH; step++) {
      const float4 u = *reinterpret_cast<const float4*>(&left[step][row]);
      const float4 v = *reinterpret_cast<const float4*>(&right[step][column]);
      const float us[4] = {u.x, u.y, u.z, u.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] += us[i] * vs[j];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (first_row + row + i >= rows) break;
    T* target = out + static_cast<long long>(first_row + row + i) * columns + first_column + column;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (first_column + column + j < columns) target[j] = from_float<T>(sum[i][j]);
    }
  }
}

#define PLAIN_MATMUL(T)                                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS)                                                           \
      plain_matmul_##T(const T* a, const T* b, T* out, int rows, int columns, int inner, int transpose_a,         \
                       int transpose_b) {                                                                         \
    plain_matmul<T>(a, b, out, rows, columns, inner, transpose_a, transpose_b);                                   \
  }

PLAIN_MATMUL(f32)
PLAIN_MATMUL(f16)
PLAIN_MATMUL(bf16)

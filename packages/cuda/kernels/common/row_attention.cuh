// Attention of one query of one head over spans of keys, by one warp, straight from global memory.
#pragma once
#include "common/elements.cuh"
#include "common/softmax.cuh"
#include "common/warp.cuh"

// 8 lanes lie along a key, a packet each at a time. So 4 groups of lanes take different keys, each with a softmax of
// its own.
constexpr int KEY_LANES = 8;
constexpr int KEY_GROUPS = WARP / KEY_LANES;
// Columns of the output that a warp holds. Wider heads are cut into slabs, and their scores computed once a slab.
constexpr int SLAB = 128;

template <typename T, int V, int Columns = SLAB>
struct RowAttention {
  static constexpr int PACKETS = Columns / (KEY_LANES * V);
  // Of a group: up to 8 packets of values on their way.
  static constexpr int KEYS_AT_ONCE = PACKETS >= 8 ? 1 : PACKETS >= 2 ? 8 / PACKETS : 4;

  float max = -INFINITY;  // base 2
  float sum = 0.0f;
  float out[PACKETS][V] = {};

  // First column of this lane's packet i.
  static __device__ __forceinline__ int column(int slab, int i) {
    return slab * Columns + (i * KEY_LANES + lane_id() % KEY_LANES) * V;
  }

  // Takes in `count` keys, rows `step` elements apart. query: [d] float32 in shared memory. factor: scale · log2(e).
  __device__ __forceinline__ void add(const T* keys, const T* values, long long step, int count, const float* query,
                                      float factor, int head_dim, int slab) {
    for (int begin = 0; begin < count; begin += KEYS_AT_ONCE * KEY_GROUPS) {
      int key[KEYS_AT_ONCE];
      Packet<T, V> value[KEYS_AT_ONCE][PACKETS];
#pragma unroll
      for (int j = 0; j < KEYS_AT_ONCE; j++) {
        key[j] = begin + j * KEY_GROUPS + lane_id() / KEY_LANES;
#pragma unroll
        for (int i = 0; i < PACKETS; i++) {
          const bool there = key[j] < count && column(slab, i) < head_dim;
          value[j][i] = there ? load<T, V>(values + key[j] * step + column(slab, i)) : Packet<T, V>{};
        }
      }

      float score[KEYS_AT_ONCE] = {};
#pragma unroll(PACKETS > 1 ? 2 : 1)
      for (int c = lane_id() % KEY_LANES * V; c < head_dim; c += KEY_LANES * V) {
        float x[V];
        if constexpr (V == 1) {
          x[0] = query[c];
        } else {
#pragma unroll
          for (int i = 0; i < V; i += 4) unpack4(&x[i], query + c + i);
        }
#pragma unroll
        for (int j = 0; j < KEYS_AT_ONCE; j++) {
          float y[V];
          unpack(y, load<T, V>(keys + ::min(key[j], count - 1) * step + c));
#pragma unroll
          for (int i = 0; i < V; i++) score[j] += x[i] * y[i];
        }
      }

      float highest = max;
#pragma unroll
      for (int j = 0; j < KEYS_AT_ONCE; j++) {
        score[j] = warp_sum<KEY_LANES>(score[j]) * factor;
        if (key[j] >= count) score[j] = -INFINITY;
        highest = fmaxf(highest, score[j]);
      }
      rescale(highest);
#pragma unroll
      for (int j = 0; j < KEYS_AT_ONCE; j++) {
        const float p = exp2f(score[j] - shift_of(max));
        sum += p;
#pragma unroll
        for (int i = 0; i < PACKETS; i++) {
          float x[V];
          unpack(x, value[j][i]);
#pragma unroll
          for (int c = 0; c < V; c++) out[i][c] += p * x[c];
        }
      }
    }
  }

  // Adds the groups up: afterwards all of them hold the same.
  __device__ __forceinline__ void merge_groups() {
    float highest = max;
#pragma unroll
    for (int distance = KEY_LANES; distance < WARP; distance *= 2) {
      highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, distance));
    }
    rescale(highest);
#pragma unroll
    for (int distance = KEY_LANES; distance < WARP; distance *= 2) {
      sum += __shfl_xor_sync(ALL_LANES, sum, distance);
#pragma unroll
      for (int i = 0; i < PACKETS; i++) {
#pragma unroll
        for (int c = 0; c < V; c++) out[i][c] += __shfl_xor_sync(ALL_LANES, out[i][c], distance);
      }
    }
  }

 private:
  static __device__ __forceinline__ void unpack4(float* x, const float* source) {
    const float4 four = *reinterpret_cast<const float4*>(source);
    x[0] = four.x;
    x[1] = four.y;
    x[2] = four.z;
    x[3] = four.w;
  }

  __device__ __forceinline__ void rescale(float highest) {
    const float factor = exp2f(max - shift_of(highest));
    max = highest;
    sum *= factor;
#pragma unroll
    for (int i = 0; i < PACKETS; i++) {
#pragma unroll
      for (int c = 0; c < V; c++) out[i][c] *= factor;
    }
  }
};

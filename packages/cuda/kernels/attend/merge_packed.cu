// Merging packed partial outputs of routed attention: each query's row from those of its slots.
//
// Persistent. Each warp takes 8 rows at a time, a quad of lanes one of them, and copies the next rows' slots, 8 at a time, to
// shared memory meanwhile: what is on its way takes no registers. All heads of a token follow each other, so that what is
// written lies together.
#include <cmath>

#include "common/divide.cuh"
#include "common/packed_rows.cuh"
#include "common/shared.cuh"
#include "common/softmax.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/exp2.cuh"
#include "ptx/mbarrier.cuh"

constexpr int WARPS = 4;
constexpr int STAGES = 2;  // of a warp
constexpr int ROWS = 8, SLOTS = 8;  // of a stage

// Rows of slots are head-major, as common/query_rows.cuh has them.
struct MergeArguments {
  void* partial;                 // [rows, slots], packed rows of d with notes, and their tails behind them
  const PackedNote* notes;       // [rows, slots], unless rows have theirs
  const int* indices;            // [T, H, slots]
  void* out;                     // [T, H, d]
  float* lse;                    // [T, H], natural
  int* suspect_count;            // zero
  int* suspects;                 // rows token · H + head that came out not finite
  int heads, slots, first_head, first_token, tokens;
  int rows;
};

template <int D>
struct Merge {
  using Row = packed::Row<D>;
  static constexpr int PARTS = D / 64, PIECES = Row::NOTED_BYTES / 16, TAIL_PIECES = Row::TAIL_BYTES / 16;

  struct Stage {
    alignas(16) unsigned char rows[ROWS][SLOTS * Row::BYTES + 64];  // of the slots, then their tails; neighbours in different banks
    PackedNote notes[packed::NOTED<D> ? 1 : ROWS][SLOTS];
    alignas(16) int indices[ROWS][SLOTS];
  };

  const MergeArguments& a;
  Stage* stages;
  int lane, chunks, heads;
  uint32_t heads_inverse;
  const unsigned char* tails;

  __device__ explicit Merge(const MergeArguments& arguments) : a(arguments) {
    stages = reinterpret_cast<Stage*>(sharedMemory) + threadIdx.x / 32 * STAGES;
    lane = threadIdx.x % 32;
    chunks = (a.slots + SLOTS - 1) / SLOTS;
    heads = a.rows / a.tokens;
    heads_inverse = inverse_of(heads);
    tails = Row::tails_of(a.partial, static_cast<long long>(a.rows) * a.slots);
  }

  // The row of slots that comes at a place, or the last one, and that of [T, H] which it is merged to.
  struct Place {
    int row, query;

    __device__ Place(const Merge& merge, int place) {
      const MergeArguments& a = merge.a;
      place = min(place, a.rows - 1);
      const int token = divide(place, merge.heads, merge.heads_inverse), head = place - token * merge.heads;
      row = head * a.tokens + token;
      query = (a.first_token + token) * a.heads + a.first_head + head;
    }
  };

  // Starts to copy pieces of 16 bytes, `most` of them at most.
  __device__ void copy(unsigned char* target, const unsigned char* source, int pieces, int most) const {
#pragma unroll
    for (int i = 0; i < most; i += 32) {
      if (i + lane < pieces) ptx::copy_16_or_zero(ptx::shared_address(target) + 16 * (i + lane), source + 16 * (i + lane), true);
    }
  }

  // Starts to copy the SLOTS slots `chunk` of the 8 rows from a place on.
  __device__ void load(Stage& stage, int first, int chunk) const {
    const int first_slot = chunk * SLOTS, slots = min(SLOTS, a.slots - first_slot);
    const Place mine(*this, first + lane % ROWS);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const long long slot = static_cast<long long>(__shfl_sync(~0u, mine.row, r)) * a.slots + first_slot;
      copy(stage.rows[r], static_cast<const unsigned char*>(a.partial) + slot * Row::NOTED_BYTES, slots * PIECES, SLOTS * PIECES);
      copy(stage.rows[r] + SLOTS * Row::NOTED_BYTES, tails + slot * Row::TAIL_BYTES, slots * TAIL_PIECES, SLOTS * TAIL_PIECES);
    }
#pragma unroll
    for (int i = 0; i < ROWS * SLOTS; i += 32) {
      const int r = (i + lane) / SLOTS, s = (i + lane) % SLOTS;
      const long long row = __shfl_sync(~0u, mine.row, r), query = __shfl_sync(~0u, mine.query, r);
      if (s >= slots) continue;
      ptx::copy_4(ptx::shared_address(&stage.indices[r][s]), a.indices + query * a.slots + first_slot + s);
      if constexpr (!packed::NOTED<D>) {
        ptx::copy_8_or_zero(ptx::shared_address(&stage.notes[r][s]), a.notes + row * a.slots + first_slot + s, true);
      }
    }
  }

  __device__ PackedNote note_of(const Stage& stage, int r, int s) const {
    if constexpr (packed::NOTED<D>) return Row::note_shared(stage.rows[r] + s * Row::NOTED_BYTES);
    else return stage.notes[r][s];
  }

  __device__ void run() const {
    const int step = gridDim.x * WARPS * ROWS, begin = (blockIdx.x * WARPS + threadIdx.x / 32) * ROWS;
    int next = begin, next_chunk = 0;
    auto load_next = [&](Stage& stage) {
      if (next < a.rows) {
        load(stage, next, next_chunk);
        if (++next_chunk == chunks) next_chunk = 0, next += step;
      }
      ptx::copy_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES; i++) load_next(stages[i]);
    int turn = 0;
    for (int first = begin; first < a.rows; first += step) {
      packed::Sum out[PARTS];
      float max = -INFINITY, sum = 0;
      for (int chunk = 0; chunk < chunks; chunk++, turn++) {
        Stage& stage = stages[turn % STAGES];
        ptx::copy_wait<STAGES - 1>();
        __syncwarp();
        add(out, max, sum, stage, min(SLOTS, a.slots - chunk * SLOTS));
        __syncwarp();
        load_next(stage);
      }
      write(out, max, sum, first + lane / 4);
    }
  }

  // Adds the slots of a stage to a quad's row. `sum` and `out` are relative to the greatest lse so far.
  __device__ void add(packed::Sum (&out)[PARTS], float& max, float& sum, const Stage& stage, int slots) const {
    const int r = lane / 4;
    const int4 low = *reinterpret_cast<const int4*>(stage.indices[r]), high = *reinterpret_cast<const int4*>(stage.indices[r] + 4);
    const int blocks[SLOTS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    float lse[SLOTS], top = max;
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
      lse[s] = s < slots && blocks[s] >= 0 ? note_of(stage, r, s).lse : -INFINITY;
      top = fmaxf(top, lse[s]);
    }
    const float shift = shift_of(top), old = ptx::exp2_approx(max - shift);
    max = top;
    sum *= old;
#pragma unroll
    for (int part = 0; part < PARTS; part++) out[part].scale(old);
#pragma unroll
    for (int s = 0; s < SLOTS; s++) {
      Row row;
      row.load_shared(stage.rows[r] + s * Row::NOTED_BYTES, stage.rows[r] + SLOTS * Row::NOTED_BYTES + s * Row::TAIL_BYTES);
      const uint32_t steps = lse[s] == -INFINITY ? 0 : note_of(stage, r, s).steps;  // of an unused slot it could be anything
      const float weight = ptx::exp2_approx(lse[s] - shift);
      sum += weight;
#pragma unroll
      for (int part = 0; part < PARTS; part++) out[part].add(row, part, weight, packed::step_of(steps, part));
    }
  }

  __device__ void write(const packed::Sum (&out)[PARTS], float max, float sum, int place) const {
    const float factor = inverse_sum(sum);
    uint32_t bad = 0;
    uint4 pieces[2 * PARTS];
#pragma unroll
    for (int i = 0; i < 2 * PARTS; i++) {
      const uint4 piece = pieces[i] = out[i / 2].piece(i % 2, factor);
      bad |= non_finite_halves<bf16>(piece.x) | non_finite_halves<bf16>(piece.y) | non_finite_halves<bf16>(piece.z) |
             non_finite_halves<bf16>(piece.w);
    }
    const unsigned lanes = __ballot_sync(~0u, bad != 0) >> (lane & ~3) & 15;
    if (place >= a.rows) return;
    const long long query = Place(*this, place).query;
    if (lane % 4 == 0 && lanes != 0) a.suspects[atomicAdd(a.suspect_count, 1)] = query;
#pragma unroll
    for (int i = 0; i < 2 * PARTS; i++) static_cast<uint4*>(a.out)[query * (D / 8) + 4 * i + lane % 4] = pieces[i];
    if (lane % 4 == 0) a.lse[query] = log_sum(max, sum) * LN_2;
  }
};

#define MERGE(NAME, D)                                                                                               \
  extern "C" __global__ void __launch_bounds__(32 * WARPS, 2) NAME(const __grid_constant__ MergeArguments arguments) { \
    Merge<D>(arguments).run();                                                                                       \
  }

MERGE(merge_packed_bf16_d64, 64)
MERGE(merge_packed_bf16_d128, 128)

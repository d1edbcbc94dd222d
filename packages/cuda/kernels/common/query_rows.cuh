// Rows of slots are head-major: of a wave's queries, row (head − first_head) · tokens + token − first_token.
#pragma once

// The row of [T, H] that a wave's row is.
template <typename Arguments>
__device__ __forceinline__ long long query_of(const Arguments& a, int row) {
  const int head = a.first_head + row / a.tokens, token = a.first_token + row % a.tokens;
  return static_cast<long long>(token) * a.heads + head;
}

// Tokens of a step, one head of one at a time.
#pragma once
#include "vectors.h"

namespace {

struct Tokens {  // [heads, T, size], the last dimension contiguous
  const void* data;
  int64_t head_stride, token_stride;  // elements

  template <class T>
  const T* row(int64_t head, int64_t token) const {
    return static_cast<const T*>(data) + head * head_stride + token * token_stride;
  }
};

// One head of one token, as float32 times a factor.
inline void read_token(const Tokens& tokens, int64_t type, int64_t head, int64_t token,
                       int64_t size, float factor, float* to) {
  if (type == kFloat32) {
    read(tokens.row<float>(head, token), size, factor, to);
  } else if (type == kBFloat16) {
    read(tokens.row<BFloat16>(head, token), size, factor, to);
  } else {
    read(tokens.row<Float16>(head, token), size, factor, to);
  }
}

}  // namespace

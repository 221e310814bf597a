// Linear layers and their input, as Python hands them over: mirrored, field by field, in products.py.
#pragma once
#include <cstdint>

struct Layer {  // several may read the same input
  const uint8_t* weight;
  const float* scales;  // [out], rounded up to 32; of 8-bit weights, else null
  const float* bias;    // [out], rounded up to 32; or null
  int64_t out_features;
  void* output;  // [rows, out], contiguous
};

struct Input {
  const void* rows;  // [rows, in], contiguous
  int64_t type, num_rows, in_features, num_threads;
};

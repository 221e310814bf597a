// Vectors of 16 float32 numbers for AVX-512: precisions, e^x and tanh, rows in and out of memory.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

namespace {

constexpr int64_t kBlock = 16;  // numbers of a vector, and tokens of a block of the pool

// Whether the processor multiplies pairs of bfloat16 numbers, and rounds to them, by itself.
const bool kHasBFloat16 = __builtin_cpu_supports("avx512bf16");

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };
enum Type : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

inline __m512 widen(__m256i bits, BFloat16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline __m512 widen(__m256i bits, Float16) { return _mm512_cvtph_ps(bits); }

// The upper halves are bfloat16 numbers, rounded to nearest even; a NaN stays one.
inline __m512i round_to_bfloat16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc00000));
}
inline __m256i narrow(__m512 x, BFloat16) {
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_to_bfloat16(x), 16));
}
inline __m256i narrow(__m512 x, Float16) {
  return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load(const float* p, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, p); }
inline void store(float* p, __mmask16 lanes, __m512 x) { _mm512_mask_storeu_ps(p, lanes, x); }
template <class T>
inline __m512 load(const T* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), T());
}
template <class T>
inline __m512 load(const T* p, __mmask16 lanes) {
  return widen(_mm256_maskz_loadu_epi16(lanes, p), T());
}
template <class T>
inline void store(T* p, __mmask16 lanes, __m512 x) {
  _mm256_mask_storeu_epi16(p, lanes, narrow(x, T()));
}

inline __m512i odd_places() {  // of 64 halves
  alignas(64) uint16_t places[2 * kBlock];
  for (int64_t i = 0; i < 2 * kBlock; i++) places[i] = 2 * i + 1;
  return _mm512_load_si512(places);
}

// 32 numbers, all of them.
inline void store_both(float* p, __m512 first, __m512 second) {
  _mm512_storeu_ps(p, first);
  _mm512_storeu_ps(p + kBlock, second);
}
inline void store_both(BFloat16* p, __m512 first, __m512 second) {
  if (kHasBFloat16) {
    __m512i rounded;
    asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(rounded) : "v"(second), "v"(first));
    return _mm512_storeu_si512(p, rounded);
  }
  static const __m512i odd = odd_places();
  const __m512i upper =
      _mm512_permutex2var_epi16(round_to_bfloat16(first), odd, round_to_bfloat16(second));
  _mm512_storeu_si512(p, upper);
}
inline void store_both(Float16* p, __m512 first, __m512 second) {
  store(p, 0xffff, first);
  store(p + kBlock, 0xffff, second);
}

inline __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(n, 0, kBlock)) - 1);
}
inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// sums[i] += the product of both numbers of pair i.
inline void add_pairs(__m512& sums, __m512i pairs, __m512i others) {  // of bfloat16 numbers
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(pairs), "v"(others));
}

// Calls a function with `count`, from 1 to Most, as a constant.
template <int Most, class Function>
void with_count(int64_t count, const Function& function) {
  if (count == Most) return function(std::integral_constant<int, Most>());
  if constexpr (Most > 1) with_count<Most - 1>(count, function);
}

inline __m512 polynomial(__m512 x, std::initializer_list<float> coefficients) {
  __m512 sum = _mm512_setzero_ps();
  for (float c : coefficients) sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(c));
  return sum;
}

// e^x for x <= 0, by Cephes' expf: relative error 2e-7, 0 below -104; NaN stays NaN.
inline __m512 exp_of(__m512 x) {
  // What comes to 0 is masked: a number that is rounded to 0 takes hundreds of cycles.
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-104.f), _CMP_NLE_UQ);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  x = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  x = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), x);
  const __m512 tail = polynomial(x, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                     4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f});
  const __m512 head = _mm512_add_ps(x, _mm512_set1_ps(1.f));
  return _mm512_maskz_scalef_ps(counts, _mm512_fmadd_ps(tail, _mm512_mul_ps(x, x), head), n);
}

// By Cephes' tanhf: an odd polynomial near 0, where the other form would cancel.
inline __m512 tanh_of(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f), square = _mm512_mul_ps(x, x);
  const __m512 size = _mm512_abs_ps(x);
  const __m512 odd = polynomial(square, {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                                         1.33314422036e-1f, -3.33332819422e-1f});
  const __m512 near = _mm512_fmadd_ps(_mm512_mul_ps(odd, square), x, x);
  const __m512 e = exp_of(_mm512_mul_ps(size, _mm512_set1_ps(-2.f)));
  const __m512 far = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  const __m512 signed_far = _mm512_mask_sub_ps(far, negative, _mm512_setzero_ps(), far);
  const __mmask16 is_far = _mm512_cmp_ps_mask(size, _mm512_set1_ps(0.625f), _CMP_GT_OQ);
  return _mm512_mask_mov_ps(near, is_far, signed_far);
}

// Memory's numbers times a factor.
template <class T>
void read(const T* from, int64_t size, float factor, float* to) {
  for (int64_t i = 0; i < size; i += kBlock) {
    const __mmask16 lanes = first_lanes(size - i);
    store(to + i, lanes, _mm512_mul_ps(load(from + i, lanes), _mm512_set1_ps(factor)));
  }
}

template <class T>
void write(const float* from, int64_t size, float factor, T* to) {
  for (int64_t i = 0; i < size; i += kBlock) {
    const __mmask16 lanes = first_lanes(size - i);
    store(to + i, lanes, _mm512_mul_ps(load(from + i, lanes), _mm512_set1_ps(factor)));
  }
}

}  // namespace

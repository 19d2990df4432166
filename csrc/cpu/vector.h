// One register of floats, in the compiler's own vector types: one source for every instruction set.
// Included inside the namespace of a level, so that no two levels share a symbol.

// a wider vector than the registers would be taken apart into scalars
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

#define PK_INLINE static inline __attribute__((always_inline))

PK_INLINE Floats spread(float x) { return Floats{} + x; }

template <class To, class From>
PK_INLINE To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To y;
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}

// b where the two cannot be compared
PK_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// a * b + c, fused where the instruction is there. Contraction is off: z must round alike in both
// passes, or a row's largest probability is off by the unit of z, not of 1.
PK_INLINE Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

PK_INLINE double fused(double a, double b, double c) { return a * b + c; }

PK_INLINE float sum(Floats x) {
  float part[kLanes];
  __builtin_memcpy(part, &x, sizeof x);
  for (int half = kLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
}

PK_INLINE float highest(Floats x) {
  float m = x[0];
  for (int i = 1; i < kLanes; ++i) m = x[i] > m ? x[i] : m;
  return m;
}

// -- storage types ------------------------------------------------------------------------------

PK_INLINE Floats widen_bf16(Halves h) {
  return bits<Floats>(__builtin_convertvector(h, Words) << 16);
}

// The upper half of each word; spelled out where the compiler goes lane by lane.
PK_INLINE Halves upper(Words u) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  __m256i w = bits<__m256i>(u >> 16);
  __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(w, w), 0x08);
  return bits<Halves>(_mm256_castsi256_si128(pairs));
#elif defined(__SSE2__) && !defined(__AVX512F__)
  // an arithmetic shift: the saturating pack then leaves every value alone
  __m128i w = bits<__m128i>(bits<Ints>(u) >> 16);
  return bits<Halves>(_mm_cvtsi128_si64(_mm_packs_epi32(w, w)));
#else
  return __builtin_convertvector(u >> 16, Halves);
#endif
}

PK_INLINE Halves narrow_bf16(Floats x) {
  Words u = bits<Words>(x);
  // round half to even; a nan must not turn into an infinity
  Words rounded = u + 0x7fffu + ((u >> 16) & 1u);
  Words nan = bits<Words>(x != x);
  return upper((rounded & ~nan) | (nan & 0x7fc00000u));
}

PK_INLINE Floats widen_f16(Halves h) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(bits<__m256i>(h));
#elif defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(bits<__m128i>(h));
#else
  Words u = __builtin_convertvector(h, Words);
  Words magnitude = (u & 0x7fffu) << 13;
  // scaling by 2^112 puts the exponent right and turns subnormals into normals
  Floats scaled = bits<Floats>(magnitude) * 0x1p112f;
  Words special = bits<Words>((Ints)(magnitude >= (0x7c00u << 13)));
  Words exponent = bits<Words>(scaled) | (special & 0x7f800000u);
  return bits<Floats>(exponent | ((u & 0x8000u) << 16));
#endif
}

PK_INLINE Halves narrow_f16(Floats x) {
#if defined(__AVX512F__)
  return bits<Halves>(_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  return bits<Halves>(_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  Words u = bits<Words>(x);
  Words sign = (u >> 16) & 0x8000u;
  Words magnitude = u & 0x7fffffffu;
  Words normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // adding .5 makes the adder round at the place of the last subnormal bit
  Words small = bits<Words>(bits<Floats>(magnitude) + 0.5f) - bits<Words>(spread(0.5f));
  Words is_small = bits<Words>((Ints)(magnitude < (113u << 23)));
  Words is_large = bits<Words>((Ints)(magnitude >= 0x477ff000u));
  Words is_nan = bits<Words>((Ints)(magnitude > 0x7f800000u));
  Words h = (small & is_small) | (normal & ~is_small);
  h = (h & ~is_large) | (is_large & 0x7c00u) | (is_nan & 0x200u);
  return upper((h | sign) << 16);
#endif
}

// -- functions ----------------------------------------------------------------------------------

// exp is 0 from here on down; -inf is lifted to it, so that x exp(x) is 0 there and not nan
constexpr float kLowest = -88.0f;

PK_INLINE Floats lift(Floats x) { return x < kLowest ? spread(kLowest) : x; }

// exp(x) for x in [kLowest, 0] or nan. The polynomial was fitted for the least relative error on
// [-ln2 / 2, ln2 / 2] (3e-9).
PK_INLINE Floats exp_lifted(Floats x) {
  // adding 1.5 * 2^23 rounds to an integer, which then sits in the low bits
  constexpr float kRound = 12582912.0f;
  Floats shifted = fused(x, spread(1.442695040888963f), spread(kRound));
  Floats k = shifted - kRound;
  Floats r = fused(k, spread(-0.693359375f), x);
  r = fused(k, spread(2.12194440054690583e-4f), r);
  Floats p = fused(spread(1.381454058e-03f), r, spread(8.368745446e-03f));
  p = fused(p, r, spread(4.166838899e-02f));
  p = fused(p, r, spread(1.666652113e-01f));
  p = fused(p, r, spread(4.999999404e-01f));
  p = fused(p, r * r, r) + 1.0f;
  // k = -127 gives 0. A product, not a sum of exponents: nan must stay nan.
  return p * bits<Floats>((bits<Ints>(shifted) << 23) + 0x3f800000);
}

PK_INLINE Floats tanh_any(Floats x) {
  Ints negative = x < 0.0f;
  Floats a = negative ? -x : x;
  Floats e = exp_lifted(lift(-2.0f * a));
  Floats far = (1.0f - e) / (1.0f + e);
  Floats q = a * a;
  // fitted for the least relative error on [0, .63] (5e-9)
  Floats p = fused(spread(-5.659375340e-03f), q, spread(2.059953101e-02f));
  p = fused(p, q, spread(-5.372802913e-02f));
  p = fused(p, q, spread(1.333130747e-01f));
  p = fused(p, q, spread(-3.333327770e-01f));
  Floats near = fused(a, q * p, a);
  Floats t = a < 0.625f ? near : far;
  return negative ? -t : t;
}

PK_INLINE double lift(double x) { return x < -1000.0 ? -1000.0 : x; }
PK_INLINE double exp_lifted(double x) { return __builtin_exp(x); }
PK_INLINE double tanh_any(double x) { return __builtin_tanh(x); }
PK_INLINE double larger(double a, double b) { return a > b ? a : b; }
PK_INLINE double sum(double x) { return x; }
PK_INLINE double highest(double x) { return x; }

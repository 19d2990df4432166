// Matrix products with fp32 sums on AVX-512: bf16 operands by vdpbf16ps, or fp32 operands.
//
// They fill two gaps on CPUs that are not Intel's: bf16 operands with an fp32 result, which torch's
// libraries have there at the speed of fp32 only, and fp32, which MKL leaves at the speed of AVX2.
// The scheme is Goto's:
//   block of C (kBlockRows x kBlockColumns) -> slice of k -> A and B packed into panels -> tiles
// A tile of C lives in registers while one panel of A meets one panel of B. What is packed are
// 32-bit units: one float, or two bf16 that follow each other along k, as vdpbf16ps takes them.
// A bf16 C is summed in an fp32 block of the workspace and rounded on the last slice of k.
// One thread sums each element of C, in one order: the thread count does not change a bit.
#include <immintrin.h>

#include "gemm_avx512.h"

namespace {

constexpr int64_t kLanes = 16;
// 12 x 2 registers of sums, 2 of B and 1 of A: 27 of the 32
constexpr int64_t kTileRows = 12;
constexpr int64_t kTileColumns = 2 * kLanes;
// units of k in a panel: one of B (32 KiB) stays in L1 beside one of A
constexpr int64_t kUnits = 256;
// of C; 4 MiB, so that it comes back from L3 for the next slice of k
constexpr int64_t kBlockRows = 1056;
constexpr int64_t kBlockColumns = 1024;
// of C in one task: its panels of A (96 KiB) stay in L2
constexpr int64_t kTaskRows = 8 * kTileRows;
constexpr int64_t kTaskColumns = 16 * kTileColumns;
// rows of A or columns of B in one packing job: whole panels and whole cache lines of all of them
constexpr int64_t kPackRows = 96;
// units between what is packed across rows and what is fetched
constexpr int64_t kAhead = 8;
static_assert(kPackRows % kTileRows == 0 && kPackRows % kTileColumns == 0, "whole panels");
static_assert(kBlockRows % kPackRows == 0, "whole jobs");

#define INLINE static inline __attribute__((always_inline))

INLINE __mmask16 first(int64_t lanes) { return lanes >= kLanes ? 0xffff : (1u << lanes) - 1; }

struct Float {
  static constexpr int64_t kPerUnit = 1;
  static constexpr bool kRounds = false;  // results are fp32
  INLINE __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
  // One unit each of `lanes` rows that follow each other in memory.
  INLINE __m512i across_rows(const char* p, int64_t, __mmask16 lanes, bool) {
    return _mm512_maskz_loadu_epi32(lanes, p);
  }
  // Units of one row, of which `left` elements are there.
  INLINE __m512i along_k(const char* p, int64_t left) {
    return _mm512_maskz_loadu_epi32(first(left), p);
  }
};

#ifdef __AVX512BF16__
struct BFloat {
  static constexpr int64_t kPerUnit = 2;
  static constexpr bool kRounds = true;  // where the result is asked for in bf16
  INLINE __m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  INLINE __m256i round(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
  INLINE __m512 load(const uint16_t* p, __mmask16 lanes) {
    __m512i x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  }
  INLINE __m512i across_rows(const char* p, int64_t k_stride, __mmask16 lanes, bool is_pair) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, p));
    if (!is_pair) return low;
    __m256i high = _mm256_maskz_loadu_epi16(lanes, p + k_stride);
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
  }
  INLINE __m512i along_k(const char* p, int64_t left) {
    return _mm512_maskz_loadu_epi16(left >= 2 * kLanes ? ~0u : (1u << left) - 1, p);
  }
};
#endif

// Lane j of x[i] <-> lane i of x[j].
INLINE void transpose(__m512i (&x)[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  // then x[4 r + c] holds, in its quarter q, lane 4 q + c of rows 4 r .. 4 r + 3
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
      x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
    }
  for (int c = 0; c < 4; ++c) {
    __m512i upper_low = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x44);
    __m512i upper_high = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xee);
    __m512i lower_low = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x44);
    __m512i lower_high = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xee);
    y[c] = _mm512_shuffle_i32x4(upper_low, lower_low, 0x88);
    y[4 + c] = _mm512_shuffle_i32x4(upper_low, lower_low, 0xdd);
    y[8 + c] = _mm512_shuffle_i32x4(upper_high, lower_high, 0x88);
    y[12 + c] = _mm512_shuffle_i32x4(upper_high, lower_high, 0xdd);
  }
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t pieces(int64_t total, int64_t size) { return (total + size - 1) / size; }

// of the workspace: the panels of both operands
constexpr int64_t kPanelUnits =
    kUnits * (kBlockRows + pieces(kBlockColumns, kPackRows) * kPackRows);

// Pieces of even size, in whole steps, none above `largest`.
int64_t even_size(int64_t total, int64_t largest, int64_t step) {
  return pieces(pieces(total, pieces(total, largest)), step) * step;
}

// kPackRows rows (`rows` of them there, zeros for the others) of an operand, `k` elements each,
// into panels of `width` rows: out[panel][unit][row].
template <class Type>
struct Packing {
  static constexpr int64_t kSize = 4 / Type::kPerUnit;
  const char* from;
  int64_t row_stride, k_stride;  // bytes
  int64_t rows, k, width;
  uint32_t* out;

  Packing(const PkMatrix& x, int64_t row, int64_t rows, int64_t k0, int64_t k, int64_t width,
          uint32_t* panels)
      : from(static_cast<const char*>(x.data) + (row * x.row_stride + k0 * x.k_stride) * kSize),
        row_stride(x.row_stride * kSize),
        k_stride(x.k_stride * kSize),
        rows(least(rows, kPackRows)),
        k(k),
        width(width),
        out(panels) {}

  // Rows are dense in memory: unit by unit, so that whole cache lines are read.
  void across_rows() const {
    int64_t end = pieces(rows, width) * width;
    for (int64_t u = 0; u * Type::kPerUnit < k; ++u) {
      const char* p = from + u * Type::kPerUnit * k_stride;
      bool is_pair = (u + 1) * Type::kPerUnit <= k;
      // the strides are pages or more, where no hardware prefetcher follows
      for (int64_t line = 0; line < rows * kSize + 64; line += 64)
        for (int64_t i = 0; i < Type::kPerUnit; ++i)
          __builtin_prefetch(p + (kAhead * Type::kPerUnit + i) * k_stride + line);
      for (int64_t row = 0; row < end; row += width)
        for (int64_t lane = 0; lane < width; lane += kLanes) {
          int64_t there = rows - row - lane;
          __m512i x = Type::across_rows(p + (row + lane) * kSize, k_stride,
                                        first(there < 0 ? 0 : there), is_pair);
          _mm512_mask_storeu_epi32(out + row * kUnits + u * width + lane, first(width - lane), x);
        }
    }
  }

  // k is dense in memory: 16 units of 16 rows at a time.
  void along_k() const {
    int64_t units = pieces(k, Type::kPerUnit);
    for (int64_t row = 0; row < rows; row += width)
      for (int64_t lane = 0; lane < width; lane += kLanes)
        for (int64_t u = 0; u < units; u += kLanes) {
          __m512i x[16];
          // the next 16 rows, or the next panel's
          for (int64_t i = 0; i < 16; ++i)
            __builtin_prefetch(from + (row + lane + i + least(width, kLanes)) * row_stride + u * 4);
#pragma GCC unroll 16
          for (int64_t i = 0; i < 16; ++i)
            x[i] = row + lane + i < rows
                       ? Type::along_k(from + (row + lane + i) * row_stride + u * 4,
                                       k - u * Type::kPerUnit)
                       : _mm512_setzero_si512();
          transpose(x);
          uint32_t* to = out + row * kUnits + u * width + lane;
          for (int64_t i = 0; i < least(units - u, kLanes); ++i)
            _mm512_mask_storeu_epi32(to + i * width, first(width - lane), x[i]);
        }
  }

  void run() const { k_stride == kSize ? along_k() : across_rows(); }
};

// Where the sums of one tile come from and go to.
struct Sums {
  float* wide;        // read where `add`; written unless there is a `rounded`
  int64_t stride;
  bool add;
  uint16_t* rounded;  // bf16, or null
  int64_t rounded_stride;
  bool add_rounded;

  Sums at(int64_t row, int64_t column) const {
    Sums moved = *this;
    moved.wide += row * stride + column;
    if (rounded) moved.rounded += row * rounded_stride + column;
    return moved;
  }
};

// One tile: the product of its panels, `rows` x `columns` of it there.
template <class Type>
__attribute__((noinline)) void tile(const uint32_t* a, const uint32_t* b, int64_t units, const Sums& to, int64_t rows,
          int64_t columns) {
  rows = least(rows, kTileRows);
  __mmask16 left = first(columns), right = first(columns < kLanes ? 0 : columns - kLanes);
  // the tile's lines arrive while it is computed (in here: a function of prefetches alone is dropped)
  for (int64_t i = 0; (to.add || !to.rounded) && i < rows; ++i) {
    __builtin_prefetch(to.wide + i * to.stride, 1);
    __builtin_prefetch(to.wide + i * to.stride + kLanes, 1);
  }
  for (int64_t i = 0; to.rounded && i < rows; ++i)
    __builtin_prefetch(to.rounded + i * to.rounded_stride, 1);
  __m512 sum[kTileRows][2];
  // every loop over `sum` unrolled, or it would live in memory
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTileRows; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
  for (int64_t u = 0; u < units; ++u, a += kTileRows, b += kTileColumns) {
    __m512i b_left = _mm512_loadu_si512(b), b_right = _mm512_loadu_si512(b + kLanes);
#pragma GCC unroll 16
    for (int64_t i = 0; i < kTileRows; ++i) {
      __m512i x = _mm512_set1_epi32(static_cast<int32_t>(a[i]));
      sum[i][0] = Type::multiply_add(sum[i][0], x, b_left);
      sum[i][1] = Type::multiply_add(sum[i][1], x, b_right);
    }
  }
  bool add = to.add, add_rounded = to.add_rounded;
  if constexpr (Type::kRounds)
    if (to.rounded) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kTileRows; ++i) {
        if (i >= rows) break;
        const float* p = to.wide + i * to.stride;
        uint16_t* q = to.rounded + i * to.rounded_stride;
        if (add) {
          sum[i][0] = _mm512_add_ps(sum[i][0], _mm512_loadu_ps(p));
          sum[i][1] = _mm512_add_ps(sum[i][1], _mm512_loadu_ps(p + kLanes));
        }
        if (add_rounded) {
          sum[i][0] = _mm512_add_ps(sum[i][0], Type::load(q, left));
          sum[i][1] = _mm512_add_ps(sum[i][1], Type::load(q + kLanes, right));
        }
        _mm256_mask_storeu_epi16(q, left, Type::round(sum[i][0]));
        _mm256_mask_storeu_epi16(q + kLanes, right, Type::round(sum[i][1]));
      }
      return;
    }
#pragma GCC unroll 16
  for (int64_t i = 0; i < kTileRows; ++i) {
    if (i >= rows) break;
    float* p = to.wide + i * to.stride;
    if (add) {
      sum[i][0] = _mm512_add_ps(sum[i][0], _mm512_maskz_loadu_ps(left, p));
      sum[i][1] = _mm512_add_ps(sum[i][1], _mm512_maskz_loadu_ps(right, p + kLanes));
    }
    _mm512_mask_storeu_ps(p, left, sum[i][0]);
    _mm512_mask_storeu_ps(p + kLanes, right, sum[i][1]);
  }
}

// Of the block of C from (m0, n0) on, for `k` of its products from k0 on.
Sums sums_of_block(const PkGemm& g, int64_t m0, int64_t n0, int64_t k0, int64_t k) {
  int64_t at = m0 * g.c_row_stride + n0;
  if (g.c_dtype == PK_F32)
    return {static_cast<float*>(g.c) + at, g.c_row_stride, g.add || k0 > 0, nullptr, 0, false};
  bool is_last = k0 + k == g.k;
  return {static_cast<float*>(g.workspace) + kPanelUnits,
          kBlockColumns,
          k0 > 0,
          is_last ? static_cast<uint16_t*>(g.c) + at : nullptr,
          g.c_row_stride,
          g.add != 0};
}

// One block of C times one slice of k; all threads of the region come here together.
template <class Type>
void slice(const PkGemm& g, int64_t m0, int64_t m, int64_t n0, int64_t n, int64_t k0, int64_t k) {
  uint32_t* a_panels = static_cast<uint32_t*>(g.workspace);
  uint32_t* b_panels = a_panels + kBlockRows * kUnits;
  Sums to = sums_of_block(g, m0, n0, k0, k);
  int64_t a_jobs = pieces(m, kPackRows), jobs = a_jobs + pieces(n, kPackRows);
#pragma omp for schedule(static)
  for (int64_t job = 0; job < jobs; ++job) {
    int64_t i = job * kPackRows, j = (job - a_jobs) * kPackRows;
    if (job < a_jobs)
      Packing<Type>(g.a, m0 + i, m - i, k0, k, kTileRows, a_panels + i * kUnits).run();
    else
      Packing<Type>(g.b, n0 + j, n - j, k0, k, kTileColumns, b_panels + j * kUnits).run();
  }
  int64_t across = pieces(n, kTaskColumns), tasks = pieces(m, kTaskRows) * across;
  int64_t units = pieces(k, Type::kPerUnit);
#pragma omp for schedule(dynamic)
  for (int64_t task = 0; task < tasks; ++task) {
    int64_t row = task / across * kTaskRows, column = task % across * kTaskColumns;
    for (int64_t j = column; j < least(column + kTaskColumns, n); j += kTileColumns)
      for (int64_t i = row; i < least(row + kTaskRows, m); i += kTileRows)
        tile<Type>(a_panels + i * kUnits, b_panels + j * kUnits, units, to.at(i, j), m - i, n - j);
  }
}

// The grid of blocks; run by every thread.
template <class Type>
void product(const PkGemm& g) {
  constexpr int64_t kSlice = kUnits * Type::kPerUnit;
  int64_t rows = even_size(g.m, kBlockRows, kTileRows);
  int64_t columns = even_size(g.n, kBlockColumns, kTileColumns);
  for (int64_t n0 = 0; n0 < g.n; n0 += columns)
    for (int64_t m0 = 0; m0 < g.m; m0 += rows)
      for (int64_t k0 = 0; k0 < g.k; k0 += kSlice)
        slice<Type>(g, m0, least(rows, g.m - m0), n0, least(columns, g.n - n0), k0,
                    least(kSlice, g.k - k0));
}

}  // namespace

namespace pk_avx512 {

int64_t gemm_workspace_bytes(int32_t c_dtype) {
  return 4 * (kPanelUnits + (c_dtype == PK_BF16 ? kBlockRows * kBlockColumns : 0));
}

Product find_product(int32_t dtype, int32_t c_dtype) {
  if (dtype == PK_F32 && c_dtype == PK_F32) return product<Float>;
#ifdef __AVX512BF16__
  if (dtype == PK_BF16 && (c_dtype == PK_F32 || c_dtype == PK_BF16) &&
      __builtin_cpu_supports("avx512bf16"))
    return product<BFloat>;
#endif
  return nullptr;
}

}  // namespace pk_avx512

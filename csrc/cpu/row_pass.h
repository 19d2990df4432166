// Plain C interface of the CPU kernels. The row pass: softmax statistics of rows of logits, and the
// gradient by the logits, in place. The matrix product around it, where torch's libraries have no
// fast one. No torch, no exceptions, no allocation.
//
// With s the raw logits (bias added; rounded to bf16 where asked), per row:
//   z = s * scale / temperature        or cap * tanh(s * scale / cap) / temperature
//   m = max z,  z' = z - m,  E = exp(z')
//   dz_j = E_j (alpha + beta z'_j) + gamma [j = target], times 1 - tanh^2 with a cap
// Every array typed `void*` holds the accumulation type: double for f64 logits, else float.
// A row is always reduced by one thread in one order: results do not depend on the thread count.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PK_API __attribute__((visibility("default")))

// raised whenever a signature, a struct or the meaning of a field changes
#define PK_ABI_VERSION 4

enum { PK_F32 = 0, PK_BF16 = 1, PK_F16 = 2, PK_F64 = 3 };
enum { PK_OK = 0, PK_BAD_ARGUMENT = 1 };

typedef struct {
  void* logits;         // (num_rows, num_columns), columns dense
  int64_t row_stride;   // elements from one row to the next
  int64_t num_rows;
  int64_t num_columns;
  const int64_t* targets;  // (num_rows) column of each target; outside [0, num_columns): elsewhere
  int64_t target_offset;   // subtracted from `targets`: first column of a vocabulary tile
  const void* bias;        // (num_columns) or null
  const void* temperature; // (num_rows) or null: `temperature_all`
  double temperature_all;
  double scale;
  double softcap;        // 0: none
  int32_t dtype;         // of logits: PK_*
  int32_t rounds_logits; // round scaled-free logits to bf16 first
  int32_t num_threads;
  int32_t reserved;
} PkLogits;

typedef struct {
  void* maximum;    // (num_rows) m
  void* sum_exp;    // (num_rows) sum E
  void* sum_z_exp;  // (num_rows) sum z' E
  void* target;     // (num_rows) z of the target (not shifted by m)
  const int64_t* rows;  // (num_listed) rows to do, or null: all of them
  int64_t num_listed;
} PkStatistics;

typedef struct {
  const int64_t* rows;  // (num_listed) rows to do, or null: all of them
  int64_t num_listed;
  const void* maximum;  // (num_rows), as are alpha, beta and gamma
  const void* alpha;
  const void* beta;     // or null: 0
  const void* gamma;    // or null: 0
  void* out;            // row i of `logits` is written to row i of `out`; may be `logits` itself
  int64_t out_row_stride;
  int32_t out_dtype;    // no wider than the logits
  int32_t reserved;
} PkGradient;

typedef struct {
  const void* data;
  int64_t row_stride;  // elements; rows of A, columns of B
  int64_t k_stride;    // elements; one of the two strides is 1
} PkMatrix;

typedef struct {
  PkMatrix a, b;
  void* c;                // (m, n) = a (m, k) b (k, n), columns dense
  int64_t c_row_stride;
  int64_t m, n, k;
  int32_t dtype;          // of a and b: PK_F32 or PK_BF16
  int32_t c_dtype;        // PK_F32, or PK_BF16 where a and b are too: sums in fp32, rounded once
  int32_t add;            // to what is in c
  int32_t num_threads;
  void* workspace;        // pk_gemm_workspace() bytes
} PkGemm;

PK_API int32_t pk_abi_version(void);

// The instruction set in use: "avx512", "avx2" or "portable".
PK_API const char* pk_level(void);

// Use a level by name; PK_BAD_ARGUMENT when this build or this CPU lacks it.
PK_API int32_t pk_set_level(const char* name);

// Fill `out`; `accumulate` merges these columns into the statistics that are there (`target` is
// written only where the target lies in these columns).
PK_API int32_t pk_statistics(const PkLogits* in, const PkStatistics* out, int32_t accumulate);

// Write dz for the listed rows.
PK_API int32_t pk_gradient(const PkLogits* in, const PkGradient* gradient);

// Move the listed rows (ascending) to rows 0, 1, 2, ... of the same buffer.
PK_API int32_t pk_pack_rows(void* data, int64_t row_stride_bytes, int64_t row_bytes,
                            const int64_t* rows, int64_t num_listed, int32_t num_threads);

// total[i] += part[i], bf16 into float.
PK_API int32_t pk_add_bf16(float* total, const uint16_t* part, int64_t count, int32_t num_threads);

// Have the system back fresh memory with pages now, all threads at once, its contents kept: a product
// that writes it first would wait for them page by page. Nothing where the system cannot.
PK_API int32_t pk_back_pages(void* data, int64_t bytes, int32_t num_threads);

// Bytes that pk_gemm needs for operands and a result of these types; 0 when the level in use has no
// such product.
PK_API int64_t pk_gemm_workspace(int32_t dtype, int32_t c_dtype);

PK_API int32_t pk_gemm(const PkGemm* gemm);

#ifdef __cplusplus
}
#endif

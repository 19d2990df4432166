// Plain C interface of the CUDA row kernels: softmax statistics of rows of logits, and the gradient
// by the logits, from one read of each row where it fits on the chip. Pointers are device pointers;
// nothing is allocated, nothing waits, so every call may be captured in a graph.
//
// With v the raw logit after bias and rounding, or tanh(cap_scale * raw) under a softcap, and
// negated where `flips`; z = scale * v; m = max v; d = (v - m) |scale| log2(e), E = 2^d, S = sum E:
//   logp = (d_target - log2 S) ln 2      entropy = (log2 S - sum(d E) / S) ln 2
//   lse = max z + log2 S ln 2            shift = m        total = S
//   dz_j = E_j (alpha + beta d_j) + gamma [j = target]
//   alpha = (-g_logp + g_lse - g_entropy (entropy - ln S)) / S
//   beta = -g_entropy ln 2 / S           gamma = g_logp
// and d loss / d raw = dz * scale, times cap_scale (1 - v^2) under a softcap. These are the
// equations of backends/triton_rows.py. A row is reduced in one fixed order.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PKC_API __attribute__((visibility("default")))

// raised whenever a signature, a struct or the meaning of a field changes
#define PKC_ABI_VERSION 1

enum { PKC_F32 = 0, PKC_BF16 = 1 };

enum {
  PKC_OK = 0,
  PKC_BAD_ARGUMENT = 1,  // a null pointer, a size or a type that no kernel takes
  PKC_UNALIGNED = 2,     // a row does not start at a multiple of 16 bytes
  PKC_UNSUPPORTED = 3,   // no device, or one below compute capability 8.0
  PKC_CUDA_ERROR = 4     // pkc_last_error() says which
};

typedef struct {
  const void* logits;      // (num_rows, num_columns), columns dense, never written through this
  int64_t row_stride;      // elements from one row to the next, a multiple of 16 bytes
  int64_t num_rows;
  int64_t num_columns;     // below 2^31 - 2^20
  const int64_t* targets;  // (num_rows); outside [0, num_columns): log-prob nan
  const uint8_t* kept;     // (num_rows) or null; rows with 0 are never read
  const float* bias;       // (num_columns) or null
  const float* scale;      // (num_rows) or null: scale_all
  float scale_all;         // below 0 exactly where `flips`, as is every scale
  float cap_scale;         // 0: no softcap
  int32_t dtype;           // of logits: PKC_*
  int32_t rounds;          // round to bf16 after the bias
  int32_t flips;
  int32_t device;          // whose memory and stream these are; it is the current one afterwards
} PkcLogits;

typedef struct {  // (num_rows) each; rows not kept: 0, 0, 0, 0, 1
  float* logp;
  float* entropy;
  float* lse;
  float* shift;
  float* total;
} PkcState;

enum { PKC_KL_NONE = 0, PKC_KL_K1 = 1, PKC_KL_ABS = 2, PKC_KL_K2 = 3, PKC_KL_K3 = 4 };

// d loss / d (logp, entropy, lse) of each row: g_logp, g_entropy, g_lse as given, and where
// `advantages` is not null, with r = exp(logp - old_logps), also
//   -A r w [the clipped surrogate -min(min(r, cap) A, clip(r, low, high) A) has a slope there]
//   + kl_weight * slope of the KL estimate at logp - ref_logps
typedef struct {
  const float* g_logp;     // (num_rows) or null: 0, as the next two
  const float* g_entropy;
  const float* g_lse;
  const float* advantages; // (num_rows) or null: the rest is not used
  const float* old_logps;  // (num_rows), or null: r is 1
  const float* weight;     // (num_rows)
  const float* ref_logps;  // (num_rows) or null
  const float* kl_weight;  // (num_rows), with ref_logps
  float ratio_low, ratio_high;
  float ratio_cap;         // inf: none
  int32_t kl;              // PKC_KL_*: whose slope
} PkcRule;

typedef struct {
  void* out;            // row i; may be the logits, or start where they start with narrower rows
  int64_t row_stride;   // elements, a multiple of 16 bytes
  int32_t dtype;        // no wider than the logits
  int32_t reserved;
  const int64_t* index; // (num_listed) or null: row index[i] of the logits becomes row i of `out`,
  int64_t num_listed;   // which is other memory then; pkc_gradient only
} PkcOut;

PKC_API int32_t pkc_abi_version(void);

// What the last PKC_CUDA_ERROR of this thread was.
PKC_API const char* pkc_last_error(void);

// Thread blocks that share a row of `pkc_row_pass` on a device of this compute capability (90 is
// 9.0) with this many bytes of shared memory a block: 1, 2, 4 or 8; 0: the row does not fit, two
// kernels read it twice.
PKC_API int32_t pkc_cluster_size(int64_t num_columns, int32_t dtype, int32_t capability,
                                 int64_t shared_bytes);

// Shared memory of one of those blocks, in bytes.
PKC_API int64_t pkc_shared_bytes(int64_t num_columns, int32_t dtype, int32_t cluster);

// One read of the logits.
PKC_API int32_t pkc_statistics(const PkcLogits* logits, const PkcState* state, void* stream);

// One read and one write, with what pkc_statistics has left in `state`.
PKC_API int32_t pkc_gradient(const PkcLogits* logits, const PkcState* state, const PkcRule* rule,
                             const PkcOut* out, void* stream);

// Both, in one read and one write where the row fits on the chip; `cluster` 0 chooses, 1 to 16
// (16 is not portable) is taken as it is, -1 asks for two kernels.
PKC_API int32_t pkc_row_pass(const PkcLogits* logits, const PkcState* state, const PkcRule* rule,
                             const PkcOut* out, int32_t cluster, void* stream);

#ifdef __cplusplus
}
#endif

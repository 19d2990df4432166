// The CUDA row kernels, from their own source, on host memory. Functions mirror the C interface;
// null means that all went well, else what the chip would have trapped on.
#include <algorithm>

#include "device.h"

#include "row_kernels.h"

namespace {

template <typename Body>
const char* run(int64_t num_rows, int cluster, int threads, int64_t shared_bytes, int order,
                const Body& body) {
  chip::fault = nullptr;
  for (int64_t row = 0; row < num_rows && !chip::fault; ++row) {
    chip::run_cluster(row * cluster, cluster, threads, size_t(shared_bytes), unsigned(order), body);
  }
  return chip::fault;
}

template <int32_t dtype>
void statistics(const PkcLogits& in, const PkcState& state, bool extras) {
  extras ? rows::row_statistics<dtype, true>(in, state)
         : rows::row_statistics<dtype, false>(in, state);
}

template <int32_t dtype, int32_t out_dtype>
void gradient(const PkcLogits& in, const PkcState& s, const PkcRule& rule, const PkcOut& to,
              bool extras, bool fused) {
  if (fused) {
    extras ? rows::row_pass<dtype, out_dtype, true>(in, s, rule, to)
           : rows::row_pass<dtype, out_dtype, false>(in, s, rule, to);
  } else {
    extras ? rows::row_gradient<dtype, out_dtype, true>(in, s, rule, to)
           : rows::row_gradient<dtype, out_dtype, false>(in, s, rule, to);
  }
}

bool has_extras(const PkcLogits& in) {
  return in.bias || in.rounds || in.flips || in.cap_scale != 0.0f;
}

}  // namespace

extern "C" {

const char* emulate_statistics(const PkcLogits* in, const PkcState* state, int32_t threads,
                               int32_t order) {
  const bool extras = has_extras(*in);
  return run(in->num_rows, 1, threads, sizeof(rows::Shared), order, [=] {
    in->dtype == PKC_BF16 ? statistics<PKC_BF16>(*in, *state, extras)
                          : statistics<PKC_F32>(*in, *state, extras);
  });
}

// cluster 0: the gradient alone
const char* emulate_gradient(const PkcLogits* in, const PkcState* state, const PkcRule* rule,
                             const PkcOut* to, int32_t cluster, int32_t threads, int32_t order) {
  const bool extras = has_extras(*in), fused = cluster > 0;
  const int items = in->dtype == PKC_BF16 ? 8 : 4;
  const int64_t vectors = (in->num_columns + items - 1) / items;
  const int64_t share = fused ? (vectors + cluster - 1) / cluster * 16 : 0;
  const int64_t num_rows = to->index ? to->num_listed : in->num_rows;
  return run(num_rows, fused ? cluster : 1, threads, int64_t(sizeof(rows::Shared)) + share, order,
             [=] {
    if (in->dtype == PKC_BF16) {
      gradient<PKC_BF16, PKC_BF16>(*in, *state, *rule, *to, extras, fused);
    } else if (to->dtype == PKC_BF16) {
      gradient<PKC_F32, PKC_BF16>(*in, *state, *rule, *to, extras, fused);
    } else {
      gradient<PKC_F32, PKC_F32>(*in, *state, *rule, *to, extras, fused);
    }
  });
}

}  // extern "C"

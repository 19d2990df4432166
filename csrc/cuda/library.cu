// The C functions: argument checks, the shape of each launch, nothing else.
#include <cuda_runtime.h>

#include "device.h"
#include "row_kernels.h"

namespace {

using rows::kThreads;

constexpr int kLargestCluster = 16, kPortableCluster = 8;
// three blocks fit a multiprocessor of Hopper: 228 KiB, 1 KiB of each block reserved
constexpr int64_t kRoomyBytes = 75 * 1024;
constexpr int64_t kSharedBytes = sizeof(rows::Shared);

thread_local const char* last_error = "none";

int32_t failed(cudaError_t error) {
  last_error = cudaGetErrorString(error);
  return PKC_CUDA_ERROR;
}

int64_t element_bytes(int32_t dtype) { return dtype == PKC_BF16 ? 2 : 4; }

bool is_dtype(int32_t dtype) { return dtype == PKC_F32 || dtype == PKC_BF16; }

bool is_aligned(const void* base, int64_t stride, int32_t dtype) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride * element_bytes(dtype) % 16 == 0;
}

int32_t check(const PkcLogits* in, const PkcState* state) {
  if (!in || !state || !is_dtype(in->dtype) || in->num_rows < 0 || in->num_columns < 1) {
    return PKC_BAD_ARGUMENT;
  }
  // block indices and column arithmetic are 32-bit
  if (in->num_rows > INT32_MAX / kLargestCluster || in->num_columns > INT32_MAX - (1 << 20) ||
      (in->row_stride < in->num_columns && in->num_rows > 1)) {
    return PKC_BAD_ARGUMENT;
  }
  if (in->num_rows == 0) return PKC_OK;
  if (!in->logits || !in->targets || !state->logp || !state->entropy || !state->lse ||
      !state->shift || !state->total) {
    return PKC_BAD_ARGUMENT;
  }
  return is_aligned(in->logits, in->row_stride, in->dtype) ? PKC_OK : PKC_UNALIGNED;
}

int32_t check(const PkcLogits& in, const PkcRule* rule, const PkcOut* to) {
  if (!rule || !to || !is_dtype(to->dtype) ||
      element_bytes(to->dtype) > element_bytes(in.dtype) ||
      (to->row_stride < in.num_columns && in.num_rows > 1) || to->num_listed < 0) {
    return PKC_BAD_ARGUMENT;
  }
  if (rule->advantages && !rule->weight) return PKC_BAD_ARGUMENT;
  if (rule->kl < PKC_KL_NONE || rule->kl > PKC_KL_K3 ||
      (rule->kl != PKC_KL_NONE && !(rule->advantages && rule->ref_logps && rule->kl_weight))) {
    return PKC_BAD_ARGUMENT;
  }
  if (in.num_rows == 0 || (to->index && to->num_listed == 0)) return PKC_OK;
  if (!to->out) return PKC_BAD_ARGUMENT;
  return is_aligned(to->out, to->row_stride, to->dtype) ? PKC_OK : PKC_UNALIGNED;
}

bool has_extras(const PkcLogits& in) {
  return in.bias || in.rounds || in.flips || in.cap_scale != 0.0f;
}

struct Device {
  int capability = 0;
  int shared_bytes = 0;
};

// This library has a runtime of its own, whose current device need not be the caller's.
cudaError_t find_device(int32_t device, Device& found) {
  int major = 0, minor = 0;
  cudaError_t error = cudaSetDevice(device);
  if (!error) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (!error) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (!error) {
    error = cudaDeviceGetAttribute(&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                   device);
  }
  found.capability = 10 * major + minor;
  return error;
}

template <typename... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), int64_t blocks, int threads, int cluster,
                   int64_t shared_bytes, void* stream, const Arguments&... arguments) {
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(shared_bytes));
  }
  if (!error && cluster > kPortableCluster) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

int32_t finish(cudaError_t error) { return error ? failed(error) : PKC_OK; }

template <int32_t dtype>
cudaError_t launch_statistics(const PkcLogits& in, const PkcState& state, void* stream) {
  const auto kernel =
      has_extras(in) ? rows::row_statistics<dtype, true> : rows::row_statistics<dtype, false>;
  return launch(kernel, in.num_rows, kThreads, 1, kSharedBytes, stream, in, state);
}

cudaError_t launch_statistics(const PkcLogits& in, const PkcState& state, void* stream) {
  return in.dtype == PKC_BF16 ? launch_statistics<PKC_BF16>(in, state, stream)
                              : launch_statistics<PKC_F32>(in, state, stream);
}

using OutKernel = void (*)(PkcLogits, PkcState, PkcRule, PkcOut);

OutKernel gradient_kernel(const PkcLogits& in, const PkcOut& to) {
  const bool extras = has_extras(in);
  if (in.dtype == PKC_BF16) {
    return extras ? rows::row_gradient<PKC_BF16, PKC_BF16, true>
                  : rows::row_gradient<PKC_BF16, PKC_BF16, false>;
  }
  if (to.dtype == PKC_BF16) {
    return extras ? rows::row_gradient<PKC_F32, PKC_BF16, true>
                  : rows::row_gradient<PKC_F32, PKC_BF16, false>;
  }
  return extras ? rows::row_gradient<PKC_F32, PKC_F32, true>
                : rows::row_gradient<PKC_F32, PKC_F32, false>;
}

OutKernel pass_kernel(const PkcLogits& in, const PkcOut& to) {
  const bool extras = has_extras(in);
  if (in.dtype == PKC_BF16) {
    return extras ? rows::row_pass<PKC_BF16, PKC_BF16, true>
                  : rows::row_pass<PKC_BF16, PKC_BF16, false>;
  }
  if (to.dtype == PKC_BF16) {
    return extras ? rows::row_pass<PKC_F32, PKC_BF16, true>
                  : rows::row_pass<PKC_F32, PKC_BF16, false>;
  }
  return extras ? rows::row_pass<PKC_F32, PKC_F32, true>
                : rows::row_pass<PKC_F32, PKC_F32, false>;
}

}  // namespace

extern "C" {

int32_t pkc_abi_version(void) { return PKC_ABI_VERSION; }

const char* pkc_last_error(void) { return last_error; }

int64_t pkc_shared_bytes(int64_t num_columns, int32_t dtype, int32_t cluster) {
  if (!is_dtype(dtype) || num_columns < 1 || cluster < 1) return 0;
  const int64_t items = 16 / element_bytes(dtype);
  const int64_t vectors = (num_columns + items - 1) / items;
  return (vectors + cluster - 1) / cluster * 16 + kSharedBytes;
}

int32_t pkc_cluster_size(int64_t num_columns, int32_t dtype, int32_t capability,
                         int64_t shared_bytes) {
  if (!is_dtype(dtype) || num_columns < 1 || capability < 80) return 0;
  const int largest = capability >= 90 ? kPortableCluster : 1;
  const int64_t roomy = shared_bytes / 2 < kRoomyBytes ? shared_bytes / 2 : kRoomyBytes;
  for (int cluster = 1; cluster <= largest; cluster *= 2) {
    if (pkc_shared_bytes(num_columns, dtype, cluster) <= roomy) return cluster;
  }
  // one block a multiprocessor: worth it for a cluster, whose blocks are large
  const bool fits = pkc_shared_bytes(num_columns, dtype, largest) <= shared_bytes;
  return largest > 1 && fits ? largest : 0;
}

int32_t pkc_statistics(const PkcLogits* in, const PkcState* state, void* stream) {
  if (const int32_t refused = check(in, state)) return refused;
  if (in->num_rows == 0) return PKC_OK;
  if (const cudaError_t error = cudaSetDevice(in->device)) return failed(error);
  return finish(launch_statistics(*in, *state, stream));
}

int32_t pkc_gradient(const PkcLogits* in, const PkcState* state, const PkcRule* rule,
                     const PkcOut* to, void* stream) {
  if (const int32_t refused = check(in, state)) return refused;
  if (const int32_t refused = check(*in, rule, to)) return refused;
  const int64_t num_rows = to->index ? to->num_listed : in->num_rows;
  if (num_rows == 0 || in->num_rows == 0) return PKC_OK;
  if (const cudaError_t error = cudaSetDevice(in->device)) return failed(error);
  return finish(launch(gradient_kernel(*in, *to), num_rows, kThreads, 1, 0, stream, *in, *state,
                       *rule, *to));
}

int32_t pkc_row_pass(const PkcLogits* in, const PkcState* state, const PkcRule* rule,
                     const PkcOut* to, int32_t cluster, void* stream) {
  if (const int32_t refused = check(in, state)) return refused;
  if (const int32_t refused = check(*in, rule, to)) return refused;
  const bool is_power = cluster <= 0 || (cluster & (cluster - 1)) == 0;
  if (to->index || cluster < -1 || cluster > kLargestCluster || !is_power) return PKC_BAD_ARGUMENT;
  if (in->num_rows == 0) return PKC_OK;
  Device device;
  if (const cudaError_t error = find_device(in->device, device)) return failed(error);
  if (device.capability < 80) return PKC_UNSUPPORTED;
  if (cluster == 0) {
    cluster = pkc_cluster_size(in->num_columns, in->dtype, device.capability, device.shared_bytes);
  }
  if (cluster > 1 && device.capability < 90) return PKC_UNSUPPORTED;
  if (cluster <= 0) {
    const cudaError_t error = launch_statistics(*in, *state, stream);
    return error ? failed(error) : pkc_gradient(in, state, rule, to, stream);
  }
  const int64_t bytes = pkc_shared_bytes(in->num_columns, in->dtype, cluster);
  if (bytes > device.shared_bytes) return PKC_BAD_ARGUMENT;
  const int threads =
      in->dtype == PKC_BF16 ? rows::kPassThreads<PKC_BF16> : rows::kPassThreads<PKC_F32>;
  return finish(launch(pass_kernel(*in, *to), in->num_rows * cluster, threads, cluster, bytes,
                       stream, *in, *state, *rule, *to));
}

}  // extern "C"

// What the row kernels use of the chip, one function an instruction. The tests bring another header
// with the same functions and run the kernels' own source on a CPU.
#pragma once
#include <stdint.h>

#define PK_DEVICE static __device__ __forceinline__
#define PK_MEMBER __device__ __forceinline__
#define PK_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)

namespace chip {

PK_DEVICE int thread() { return threadIdx.x; }
PK_DEVICE int num_threads() { return blockDim.x; }
PK_DEVICE int64_t block() { return blockIdx.x; }

PK_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

PK_DEVICE void sync_block() { __syncthreads(); }

// Blocks of a cluster; on older chips every block is its own.
PK_DEVICE int cluster_size() {
#if __CUDA_ARCH__ >= 900
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

PK_DEVICE int cluster_rank() {
#if __CUDA_ARCH__ >= 900
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

// Every thread of the cluster arrives; what it wrote before is seen by whoever has waited.
PK_DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

PK_DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}

// The float at this address in the shared memory of another block of the cluster.
PK_DEVICE float load_from(const float* mine, int rank) {
#if __CUDA_ARCH__ >= 900
  uint32_t here = static_cast<uint32_t>(__cvta_generic_to_shared(mine)), there;
  float value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(there) : "memory");
  return value;
#else
  return *mine;
#endif
}

// Start a copy of 16 bytes into shared memory, of which `bytes` are read and the others are 0.
PK_DEVICE void copy_async(void* to, const void* from, int bytes) {
  uint32_t here = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(here), "l"(from), "r"(bytes)
               : "memory");
}

PK_DEVICE void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most `pending` of this thread's groups are on their way.
template <int pending>
PK_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

PK_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

PK_DEVICE int least(int a, int b) { return min(a, b); }

PK_DEVICE uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }
PK_DEVICE void store16(void* p, uint4 value) { *static_cast<uint4*>(p) = value; }
PK_DEVICE void store8(void* p, uint2 value) { *static_cast<uint2*>(p) = value; }

PK_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
PK_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }

PK_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The larger one, or nan where there is one: fmaxf would drop it.
PK_DEVICE float larger_or_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// bf16 of `low` in the lower half, of `high` in the upper half; half to even.
PK_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

}  // namespace chip

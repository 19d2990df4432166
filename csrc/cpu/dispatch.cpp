// The C functions: arguments checked, the level chosen, the rows cut among threads.
#include <stdlib.h>
#include <string.h>

#include "gemm_avx512.h"
#include "level.h"
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14, newer than many C libraries
#endif
#endif

namespace pk_portable { extern const Level level; }
#ifdef PK_X86
#include <cpuid.h>
namespace pk_avx2 { extern const Level level; }
namespace pk_avx512 { extern const Level level; }
#endif

namespace {

// best first
const char* const kLevels[] = {"avx512", "avx2", "portable"};

struct Named {
  const char* name;
  const Level* level;
};

#ifdef PK_X86
// every flag that build.py compiles the levels with
bool has_avx2() {
  unsigned a, b, c, d;
  // older compilers' __builtin_cpu_supports does not know f16c
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// null: not in this build or not on this CPU
const Level* find(const char* name) {
#ifdef PK_X86
  __builtin_cpu_init();
  if (!strcmp(name, "avx512") && has_avx512()) return &pk_avx512::level;
  if (!strcmp(name, "avx2") && has_avx2()) return &pk_avx2::level;
#endif
  return strcmp(name, "portable") ? nullptr : &pk_portable::level;
}

Named best() {
  for (const char* name : kLevels)
    if (const Level* level = find(name)) return {name, level};
  return {"portable", &pk_portable::level};
}

Named& current() {
  static Named chosen = best();
  return chosen;
}

// a thread is worth its start from about this many elements on
constexpr int64_t kElementsPerThread = 16384;

template <class Work>
void share(int64_t count, int64_t elements_each, int32_t num_threads, const Work& work) {
  int64_t useful = elements_each > 0 && count > 0
                       ? 1 + (count - 1) / (1 + kElementsPerThread / elements_each)
                       : 1;
  int64_t threads = num_threads < useful ? num_threads : useful;
  threads = threads < count ? threads : count;
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
      // the runtime may give fewer threads than asked for
      int64_t n = omp_get_num_threads(), i = omp_get_thread_num();
      int64_t size = count / n, extra = count % n;
      int64_t begin = i * size + (i < extra ? i : extra);
      work(begin, begin + size + (i < extra ? 1 : 0));
    }
    return;
  }
#endif
  (void)threads;
  work(int64_t(0), count);
}

// null: the level in use has none for these types
pk_avx512::Product product(int32_t dtype, int32_t c_dtype) {
#ifdef PK_X86
  if (current().level == &pk_avx512::level) return pk_avx512::find_product(dtype, c_dtype);
#endif
  (void)dtype, (void)c_dtype;
  return nullptr;
}

bool is_dense(const PkMatrix& x) { return x.data && (x.row_stride == 1 || x.k_stride == 1); }

bool sound(const PkLogits* in) {
  return in && in->dtype >= 0 && in->dtype <= PK_F64 && in->num_rows >= 0 && in->num_columns > 0 &&
         in->num_threads > 0 && in->row_stride >= in->num_columns &&
         (in->num_rows == 0 || (in->logits && in->targets));
}

}  // namespace

extern "C" {

int32_t pk_abi_version(void) { return PK_ABI_VERSION; }

const char* pk_level(void) { return current().name; }

int32_t pk_set_level(const char* name) {
  for (const char* known : kLevels) {
    if (strcmp(name, known)) continue;
    const Level* level = find(known);
    if (!level) return PK_BAD_ARGUMENT;
    current() = {known, level};
    return PK_OK;
  }
  return PK_BAD_ARGUMENT;
}

int32_t pk_statistics(const PkLogits* in, const PkStatistics* out, int32_t accumulate) {
  if (!sound(in) || !out) return PK_BAD_ARGUMENT;
  auto run = current().level->statistics[in->dtype];
  int64_t count = out->rows ? out->num_listed : in->num_rows;
  if (count < 0) return PK_BAD_ARGUMENT;
  share(count, in->num_columns, in->num_threads,
        [&](int64_t begin, int64_t end) { run(*in, *out, accumulate != 0, begin, end); });
  return PK_OK;
}

int32_t pk_gradient(const PkLogits* in, const PkGradient* g) {
  if (!sound(in) || !g || g->out_dtype < 0 || g->out_dtype > PK_F64) return PK_BAD_ARGUMENT;
  auto run = current().level->gradient[in->dtype][g->out_dtype];
  int64_t count = g->rows ? g->num_listed : in->num_rows;
  if (!run || count < 0 || (count && (!g->out || !g->maximum || !g->alpha)))
    return PK_BAD_ARGUMENT;
  share(count, in->num_columns, in->num_threads,
        [&](int64_t begin, int64_t end) { run(*in, *g, begin, end); });
  return PK_OK;
}

int32_t pk_pack_rows(void* data, int64_t stride, int64_t row_bytes, const int64_t* rows,
                     int64_t num_listed, int32_t num_threads) {
  if (num_threads < 1 || row_bytes < 0 || num_listed < 0) return PK_BAD_ARGUMENT;
  // cut by bytes of a row, not by rows: a row may only be overwritten once it has been read, and
  // within its bytes one thread moves all rows in order
  constexpr int64_t kLine = 64;
  int64_t lines = (row_bytes + kLine - 1) / kLine;
  share(lines, num_listed * kLine, num_threads, [&](int64_t begin, int64_t end) {
    int64_t first = begin * kLine, last = end * kLine < row_bytes ? end * kLine : row_bytes;
    if (first >= last) return;
    for (int64_t i = 0; i < num_listed; ++i)
      if (rows[i] != i)
        memcpy(static_cast<char*>(data) + i * stride + first,
               static_cast<const char*>(data) + rows[i] * stride + first, last - first);
  });
  return PK_OK;
}

int32_t pk_add_bf16(float* total, const uint16_t* part, int64_t count, int32_t num_threads) {
  if (num_threads < 1 || count < 0) return PK_BAD_ARGUMENT;
  auto run = current().level->add_bf16;
  share(count, 1, num_threads,
        [&](int64_t begin, int64_t end) { run(total, part, begin, end); });
  return PK_OK;
}

int32_t pk_back_pages(void* data, int64_t bytes, int32_t num_threads) {
  if (num_threads < 1 || bytes < 0 || !data) return PK_BAD_ARGUMENT;
#ifdef __linux__
  // whole pages inside of it: those at its ends belong to others too
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (start + page - 1) / page, last = (start + bytes) / page;
  if (last <= first) return PK_OK;
  share(last - first, page, num_threads, [&](int64_t begin, int64_t end) {
    // may fail, on an older system or where a limit is near: then the first write does it
    madvise(reinterpret_cast<void*>((first + begin) * page), (end - begin) * page,
            MADV_POPULATE_WRITE);
  });
#endif
  return PK_OK;
}

int64_t pk_gemm_workspace(int32_t dtype, int32_t c_dtype) {
#ifdef PK_X86
  if (product(dtype, c_dtype)) return pk_avx512::gemm_workspace_bytes(c_dtype);
#endif
  (void)dtype, (void)c_dtype;
  return 0;
}

int32_t pk_gemm(const PkGemm* g) {
  auto run = g ? product(g->dtype, g->c_dtype) : nullptr;
  if (!run || g->m < 1 || g->n < 1 || g->k < 1 || g->num_threads < 1 || !g->c || !g->workspace ||
      !is_dense(g->a) || !is_dense(g->b))
    return PK_BAD_ARGUMENT;
#ifdef _OPENMP
  // a thread is worth its start from about this many products on
  constexpr double kProductsPerThread = 1 << 20;
  double useful = 1 + double(g->m) * double(g->n) * double(g->k) / kProductsPerThread;
  int threads = useful < g->num_threads ? static_cast<int>(useful) : g->num_threads;
#pragma omp parallel num_threads(threads)
#endif
  run(*g);
  return PK_OK;
}

}  // extern "C"

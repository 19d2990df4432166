// What gemm_avx512.cpp offers to the dispatcher, once it has found AVX-512 here. A product is called
// by every thread of a parallel region.
#pragma once
#include "row_pass.h"

namespace pk_avx512 {

typedef void (*Product)(const PkGemm&);

int64_t gemm_workspace_bytes(int32_t c_dtype);

// By types of operands and result; null where the compiler or the CPU does not know the instructions.
Product find_product(int32_t dtype, int32_t c_dtype);

}  // namespace pk_avx512

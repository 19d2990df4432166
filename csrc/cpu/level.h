// What a level (one instruction set's build of the row pass) offers to the dispatcher.
#pragma once
#include "row_pass.h"

struct Level {
  // by dtype; rows [begin, end)
  void (*statistics[4])(const PkLogits&, const PkStatistics&, bool accumulate, int64_t begin,
                        int64_t end);
  // by dtype and dtype of the result; listed rows [begin, end)
  void (*gradient[4][4])(const PkLogits&, const PkGradient&, int64_t begin, int64_t end);
  void (*add_bf16)(float*, const uint16_t*, int64_t begin, int64_t end);
};

#define PK_LEVEL pk_avx512
#include "rows.h"

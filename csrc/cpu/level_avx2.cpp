#define PK_LEVEL pk_avx2
#include "rows.h"

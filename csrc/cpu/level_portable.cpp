#define PK_LEVEL pk_portable
#include "rows.h"

#define EMULATE_IFMA
#include "lanes_ifma.c"

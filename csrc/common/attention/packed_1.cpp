// Packed attention with one head to a group; wide heads lie as the caller gave them.

#include "common/attention/packed_kernels.h"

namespace gtkern::attention {

const Kernels* kernels_1(int vectors) { return narrowest<1, 1, 2, 3, 4, 6, 8, 12, 16>(vectors); }

}  // namespace gtkern::attention

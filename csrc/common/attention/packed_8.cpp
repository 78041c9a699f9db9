// Packed attention with 8 heads to a group.

#include "common/attention/packed_kernels.h"

namespace gtkern::attention {

const Kernels* kernels_8(int vectors) { return narrowest<8, 1, 2, 3, 4, 5, 6, 8>(vectors); }

}  // namespace gtkern::attention

// Packed attention with 2 heads to a group.

#include "common/attention/packed_kernels.h"

namespace gtkern::attention {

const Kernels* kernels_2(int vectors) { return narrowest<2, 1, 2, 3, 4, 5, 6, 8>(vectors); }

}  // namespace gtkern::attention

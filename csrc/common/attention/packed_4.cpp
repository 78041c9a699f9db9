// Packed attention with 4 heads to a group.

#include "common/attention/packed_kernels.h"

namespace gtkern::attention {

const Kernels* kernels_4(int vectors) { return narrowest<4, 1, 2, 3, 4, 5, 6, 8>(vectors); }

}  // namespace gtkern::attention

// Adds the functions over packed graphs to gtkern._graph.
#pragma once

#include <pybind11/pybind11.h>

namespace gtkern::graph {

void define_structure(pybind11::module_& m);

}  // namespace gtkern::graph

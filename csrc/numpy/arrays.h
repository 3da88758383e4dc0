// NumPy arrays as the kernels see them.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/validate.h"

namespace lookaheadkv::numpy {

namespace py = pybind11;

using OptionalArray = std::optional<py::array>;

// What the checks need to know.
TensorInfo describe(const char* name, const py::array& array);

// A [B, H, S, D] array that passed validation.
TensorView view(const py::array& array);

// Uninitialised C-ordered array.
py::array empty(const py::dtype& dtype, const std::vector<int64_t>& shape);

// A float32 or int32 array that passed validation, as a C-ordered one (copied only if needed).
template <typename T>
using Contiguous = py::array_t<T, py::array::c_style | py::array::forcecast>;

}  // namespace lookaheadkv::numpy

#include "numpy/arrays.h"

#include <algorithm>

namespace lookaheadkv::numpy {

namespace {

// "float32", "bfloat16" (of ml_dtypes), ...; a byte-swapped dtype keeps its own spelling, ">f4".
std::string dtype_name(const py::dtype& dtype) {
  const bool native = dtype.attr("isnative").cast<bool>();
  return native ? dtype.attr("name").cast<std::string>() : py::str(dtype).cast<std::string>();
}

}  // namespace

TensorInfo describe(const char* name, const py::array& array) {
  TensorInfo info;
  info.name = name;
  info.other = dtype_name(array.dtype());
  info.type = element_type(info.other);
  info.aligned = array.attr("flags").attr("aligned").cast<bool>();
  // Aligned elements have strides of whole elements, but for dimensions of size 1, which are never
  // stepped along. Elements of size 0 ("V0") fail the checks of the dtype.
  const py::ssize_t itemsize = std::max<py::ssize_t>(1, array.itemsize());
  for (py::ssize_t dim = 0; dim < array.ndim(); ++dim) {
    info.shape.push_back(array.shape(dim));
    info.strides.push_back(array.strides(dim) / itemsize);
  }
  return info;
}

TensorView view(const py::array& array) {
  TensorView result;
  result.data = array.data();
  result.dtype = dtype_of(element_type(dtype_name(array.dtype())));
  result.stride_b = array.strides(0) / array.itemsize();
  result.stride_h = array.strides(1) / array.itemsize();
  result.stride_s = array.strides(2) / array.itemsize();
  return result;
}

py::array empty(const py::dtype& dtype, const std::vector<int64_t>& shape) {
  return py::array(dtype, std::vector<py::ssize_t>(shape.begin(), shape.end()));
}

}  // namespace lookaheadkv::numpy

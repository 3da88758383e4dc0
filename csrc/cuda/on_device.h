// What every torch op on CUDA does: find its device and stream, and take its memory in one piece.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "cuda/kernels.h"
#include "torch/tensors.h"

namespace lookaheadkv::cuda {

// Makes a tensor's device the current one, and says where to launch.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &device_.stream));
    device_.num_sms = multiprocessors_of_current_device();
  }
  const Device& device() const { return device_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Device device_ = {};
};

// Calls body(workspace) to learn how much memory it takes, and again with that memory.
template <class Body>
void with_workspace(const Tensor& like, const Body& body) {
  Workspace counted;
  body(counted);
  Tensor memory = empty_like_device(like, {counted.size()}, ScalarType::Byte);
  Workspace workspace(memory.mutable_data_ptr());
  body(workspace);
}

}  // namespace lookaheadkv::cuda

// The CUDA kernels of csrc as ops on CPU tensors: "fastdiff_sim::film" runs film's CUDA kernel in the simulator.
#include "boxing.h"
#include "simulator.h"

// What torch's CUDA build would bring: a device and its stream.
extern "C" {
int32_t aoti_torch_create_device_guard(int32_t, DeviceGuardOpaque**) { return 0; }
int32_t aoti_torch_delete_device_guard(DeviceGuardOpaque*) { return 0; }
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
}

#define FASTDIFF_EXPORT extern "C" __attribute__((visibility("default")))

// A line for each op that has a CUDA kernel.
FASTDIFF_EXPORT const char* cuda_sim_ops() {
  static const std::string text = [] {
    std::string out;
    for (const auto& k : fastdiff::kernels())
      if (!std::strcmp(k.key, "CUDA")) out += std::string(k.op) + "\n";
    return out;
  }();
  return text.c_str();
}

// Registers them all; their schemas must be there. Returns 0, or libtorch's error.
FASTDIFF_EXPORT int32_t cuda_sim_register() {
  for (const auto& k : fastdiff::kernels()) {
    if (std::strcmp(k.key, "CUDA")) continue;
    TorchLibraryOpaque* library;
    if (const int32_t error = aoti_torch_library_init_impl("fastdiff_sim", "CPU", __FILE__, __LINE__, &library)) return error;
    if (const int32_t error = torch_library_impl(library, k.op, k.run, fastdiff::kAbiVersion)) return error;
  }
  return 0;
}

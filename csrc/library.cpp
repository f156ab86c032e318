// What Python asks of the op library before it trusts it (fastdiff/ops/_library.py): loading it registers nothing.
#include "common/cpu_dispatch.h"
#include "boxing.h"

#define FASTDIFF_EXPORT extern "C" __attribute__((visibility("default")))

// A line "op key signature" for each compiled kernel.
FASTDIFF_EXPORT const char* fastdiff_kernels() {
  static const std::string text = [] {
    std::string out;
    for (const auto& k : fastdiff::kernels()) out += std::string(k.op) + " " + k.key + " " + k.signature + "\n";
    return out;
  }();
  return text.c_str();
}

// Highest instruction set to use; above what this CPU has, it stays at what there is. Returns the one in force.
FASTDIFF_EXPORT const char* fastdiff_cap_cpu(const char* level) {
  fastdiff::cap_cpu_level(level);
  return fastdiff::cpu_level_name();
}

// Registers one kernel with torch. Returns null, or why not.
FASTDIFF_EXPORT const char* fastdiff_register(const char* op, const char* key) {
  static std::string error;
  try {
    for (const auto& k : fastdiff::kernels()) {
      if (std::strcmp(k.op, op) || std::strcmp(k.key, key)) continue;
      TorchLibraryOpaque* library;  // lives as long as the process, as its kernels must
      fastdiff::ok(aoti_torch_library_init_impl("fastdiff", key, __FILE__, __LINE__, &library));
      fastdiff::ok(torch_library_impl(library, op, k.run, fastdiff::kAbiVersion));
      return nullptr;
    }
    fastdiff::fail("no compiled kernel ", op, " for ", key);
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
}

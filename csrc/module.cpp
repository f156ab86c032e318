// fastdiff._C: what was compiled and what this CPU can do. The ops are in a library of their own, without Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "common/cpu_features.h"

namespace py = pybind11;

namespace {

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> out;
  std::istringstream stream(list);
  for (std::string item; stream >> item;) out.push_back(item);
  return out;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = FASTDIFF_COMPILER;
  info["cpu"] = split(FASTDIFF_ISAS);
  info["cuda"] = FASTDIFF_CUDA_VERSION;  // nvcc's version, empty without CUDA kernels
  info["cuda_architectures"] = split(FASTDIFF_CUDA_ARCHITECTURES);
  return info;
}

std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> out;
#ifdef FASTDIFF_X86
#define FASTDIFF_FEATURE(name) out[name] = __builtin_cpu_supports(name) != 0
  FASTDIFF_FEATURE("avx2");
  FASTDIFF_FEATURE("fma");
  FASTDIFF_FEATURE("f16c");
  FASTDIFF_FEATURE("avx512f");
  FASTDIFF_FEATURE("avx512bw");
  FASTDIFF_FEATURE("avx512vl");
  FASTDIFF_FEATURE("avx512dq");
  FASTDIFF_FEATURE("avx512bf16");
#undef FASTDIFF_FEATURE
  out["amx_bf16"] = fastdiff::cpu_has_amx_bf16();
#endif
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastdiff's build and this machine's CPU";
  m.def("build_info", &build_info, "What was compiled: compiler, CPU instruction sets, nvcc and its architectures.");
  m.def("cpu_features", &cpu_features, "Instruction sets of this CPU that kernels are compiled for, by GCC's names.");
}

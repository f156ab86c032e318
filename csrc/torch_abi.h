// The functions of libtorch's stable C ABI that fastdiff calls.
//
// Nothing of torch is needed to compile this. The declarations repeat those of torch/csrc/stable/c/shim.h and
// torch/csrc/inductor/aoti_torch/c/shim.h, which torch keeps stable: a library built once loads under every torch from
// 2.11 on, CPU or CUDA build. Every function returns 0, or an error whose text it has logged.
#pragma once
#include <cstdint>
#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/numeric.h"

extern "C" {
struct AtenTensorOpaque;
struct TorchLibraryOpaque;
struct DeviceGuardOpaque;
struct StableListOpaque;
struct StringOpaque;
using StableIValue = uint64_t;
using BoxedKernel = void (*)(StableIValue* stack, uint64_t num_inputs, uint64_t num_outputs);

int32_t aoti_torch_library_init_impl(const char* ns, const char* key, const char* file, uint32_t line, TorchLibraryOpaque**);
int32_t torch_library_impl(TorchLibraryOpaque*, const char* op, BoxedKernel, uint64_t abi_version);

int32_t aoti_torch_new_tensor_handle(AtenTensorOpaque*, AtenTensorOpaque** copy);
int32_t aoti_torch_delete_tensor_object(AtenTensorOpaque*);
int32_t aoti_torch_get_dim(AtenTensorOpaque*, int64_t*);
int32_t aoti_torch_get_sizes(AtenTensorOpaque*, int64_t**);
int32_t aoti_torch_get_strides(AtenTensorOpaque*, int64_t**);
int32_t aoti_torch_get_dtype(AtenTensorOpaque*, int32_t*);
int32_t aoti_torch_get_device_type(AtenTensorOpaque*, int32_t*);
int32_t aoti_torch_get_device_index(AtenTensorOpaque*, int32_t*);
int32_t torch_get_const_data_ptr(AtenTensorOpaque*, const void**);
int32_t torch_get_mutable_data_ptr(AtenTensorOpaque*, void**);
int32_t aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype, int32_t device_type,
                                 int32_t device_index, AtenTensorOpaque**);
int32_t aoti_torch_copy_(AtenTensorOpaque* self, AtenTensorOpaque* source, int32_t non_blocking);

int32_t torch_list_size(StableListOpaque*, size_t*);
int32_t torch_list_get_item(StableListOpaque*, size_t index, StableIValue*);
int32_t torch_delete_list(StableListOpaque*);
int32_t torch_string_c_str(StringOpaque*, const char**);
int32_t torch_string_length(StringOpaque*, size_t*);
int32_t torch_delete_string(StringOpaque*);

int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain, void (*)(int64_t, int64_t, void*), void* context);
int32_t torch_get_num_threads(uint32_t* threads);

int32_t aoti_torch_dtype_float64();
int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_float16();
int32_t aoti_torch_dtype_int64();
int32_t aoti_torch_dtype_int32();
int32_t aoti_torch_dtype_bool();

// Absent from a CPU build of torch, and from versions before 2.13.
__attribute__((weak)) int32_t aoti_torch_create_device_guard(int32_t device_index, DeviceGuardOpaque**);
__attribute__((weak)) int32_t aoti_torch_delete_device_guard(DeviceGuardOpaque*);
__attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void**);
__attribute__((weak)) const char* torch_exception_get_what();
}

namespace fastdiff {

constexpr uint64_t kAbiVersion = (2ull << 56) | (11ull << 48);  // conversions as of torch 2.11

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

#define FASTDIFF_CHECK(condition, ...) \
  do {                                 \
    if (!(condition)) ::fastdiff::fail(__VA_ARGS__); \
  } while (0)

inline void ok(int32_t error) {
  if (error) fail("libtorch call failed", torch_exception_get_what ? ": " : "", torch_exception_get_what ? torch_exception_get_what() : "");
}

inline DType dtype_from_torch(int32_t code) {
  static const int32_t codes[] = {aoti_torch_dtype_float64(), aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(),
                                  aoti_torch_dtype_float16(), aoti_torch_dtype_int64(),   aoti_torch_dtype_int32(),
                                  aoti_torch_dtype_bool()};
  for (int i = 0; i < 7; ++i)
    if (codes[i] == code) return static_cast<DType>(i);
  return DType::other;
}

inline int32_t dtype_to_torch(DType dtype) {
  switch (dtype) {
    case DType::f64: return aoti_torch_dtype_float64();
    case DType::f32: return aoti_torch_dtype_float32();
    case DType::bf16: return aoti_torch_dtype_bfloat16();
    case DType::f16: return aoti_torch_dtype_float16();
    case DType::i64: return aoti_torch_dtype_int64();
    case DType::i32: return aoti_torch_dtype_int32();
    case DType::b8: return aoti_torch_dtype_bool();
    default: fail("dtype has no torch code");
  }
}

// An owned reference to a tensor, with its metadata read once.
class Tensor {
 public:
  explicit Tensor(AtenTensorOpaque* handle) : handle_(handle) {
    int64_t *sizes, *strides;
    int32_t dtype;
    ok(aoti_torch_get_dim(handle, &dim_));
    ok(aoti_torch_get_sizes(handle, &sizes));
    ok(aoti_torch_get_strides(handle, &strides));
    ok(aoti_torch_get_dtype(handle, &dtype));
    sizes_ = sizes, strides_ = strides, dtype_ = dtype_from_torch(dtype);
  }
  Tensor(Tensor&& other) noexcept { *this = std::move(other); }
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    dim_ = other.dim_, sizes_ = other.sizes_, strides_ = other.strides_, dtype_ = other.dtype_;
    return *this;
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  AtenTensorOpaque* handle() const { return handle_; }
  AtenTensorOpaque* release() { return std::exchange(handle_, nullptr); }
  int64_t dim() const { return dim_; }
  int64_t size(int64_t i) const { return sizes_[i]; }
  int64_t stride(int64_t i) const { return strides_[i]; }
  const int64_t* sizes() const { return sizes_; }
  const int64_t* strides() const { return strides_; }
  DType dtype() const { return dtype_; }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t i = 0; i < dim_; ++i) n *= sizes_[i];
    return n;
  }
  int32_t device_type() const {
    int32_t type;
    ok(aoti_torch_get_device_type(handle_, &type));
    return type;
  }
  int32_t device_index() const {
    int32_t index;
    ok(aoti_torch_get_device_index(handle_, &index));
    return index;
  }
  const void* data() const {
    const void* p;
    ok(torch_get_const_data_ptr(handle_, &p));
    return p;
  }
  void* mutable_data() const {
    void* p;
    ok(torch_get_mutable_data_ptr(handle_, &p));
    return p;
  }

 private:
  AtenTensorOpaque* handle_ = nullptr;
  int64_t dim_ = 0;
  const int64_t *sizes_ = nullptr, *strides_ = nullptr;  // owned by the tensor
  DType dtype_ = DType::other;
};

inline Tensor empty_strided(const int64_t* sizes, const int64_t* strides, int64_t dim, DType dtype, const Tensor& like) {
  AtenTensorOpaque* out;
  ok(aoti_torch_empty_strided(dim, sizes, strides, dtype_to_torch(dtype), like.device_type(), like.device_index(), &out));
  return Tensor(out);
}

inline Tensor empty(const std::vector<int64_t>& sizes, DType dtype, const Tensor& like) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0; step *= sizes[i] > 1 ? sizes[i] : 1) strides[i] = step;
  return empty_strided(sizes.data(), strides.data(), static_cast<int64_t>(sizes.size()), dtype, like);
}

// torch's own thread pool; body(begin, end) runs on disjoint pieces of [begin, end) of at least `grain` each.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, Body&& body) {
  auto call = [](int64_t b, int64_t e, void* context) { (*static_cast<std::remove_reference_t<Body>*>(context))(b, e); };
  if (end > begin) ok(torch_parallel_for(begin, end, grain < 1 ? 1 : grain, call, &body));
}

inline int64_t num_threads() {
  uint32_t threads;
  ok(torch_get_num_threads(&threads));
  return threads;
}

class CudaDeviceGuard {
 public:
  explicit CudaDeviceGuard(int32_t index) {
    FASTDIFF_CHECK(aoti_torch_create_device_guard && aoti_torch_get_current_cuda_stream, "this torch was built without CUDA");
    ok(aoti_torch_create_device_guard(index, &guard_));
    ok(aoti_torch_get_current_cuda_stream(index, &stream_));
  }
  ~CudaDeviceGuard() { aoti_torch_delete_device_guard(guard_); }
  CudaDeviceGuard(const CudaDeviceGuard&) = delete;
  void* stream() const { return stream_; }

 private:
  DeviceGuardOpaque* guard_ = nullptr;
  void* stream_ = nullptr;
};

inline void cuda_ok(const char* error) { FASTDIFF_CHECK(!error, "CUDA: ", error); }

}  // namespace fastdiff

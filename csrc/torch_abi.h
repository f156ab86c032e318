// The functions of libtorch's stable C ABI that fastdiff calls, and the boxing between them and C++ functions.
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
#include <tuple>
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
                                  aoti_torch_dtype_float16(), aoti_torch_dtype_int64(),   aoti_torch_dtype_int32()};
  for (int i = 0; i < 6; ++i)
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

// ---- boxing: what each C++ type is called in a schema, and how it travels in a StableIValue ----

template <class T>
struct Boxed;

template <class T>
  requires(std::is_same_v<T, int64_t> || std::is_same_v<T, double> || std::is_same_v<T, bool>)
struct Boxed<T> {
  static std::string name() { return std::is_same_v<T, int64_t> ? "int" : std::is_same_v<T, double> ? "float" : "bool"; }
  static T take(StableIValue v) {
    T out;
    std::memcpy(&out, &v, sizeof(T));
    return out;
  }
};
template <>
struct Boxed<Tensor> {
  static std::string name() { return "Tensor"; }
  static Tensor take(StableIValue v) { return Tensor(reinterpret_cast<AtenTensorOpaque*>(v)); }
  static StableIValue give(Tensor&& t) { return reinterpret_cast<StableIValue>(t.release()); }
};
template <>
struct Boxed<std::string> {
  static std::string name() { return "str"; }
  static std::string take(StableIValue v) {
    auto* handle = reinterpret_cast<StringOpaque*>(v);
    const char* text;
    size_t length;
    ok(torch_string_c_str(handle, &text));
    ok(torch_string_length(handle, &length));
    std::string out(text, length);
    ok(torch_delete_string(handle));
    return out;
  }
};
template <>
struct Boxed<std::vector<int64_t>> {
  static std::string name() { return "List[int]"; }
  static std::vector<int64_t> take(StableIValue v) {
    auto* list = reinterpret_cast<StableListOpaque*>(v);
    size_t size;
    ok(torch_list_size(list, &size));
    std::vector<int64_t> out(size);
    for (size_t i = 0; i < size; ++i) {
      StableIValue item;
      ok(torch_list_get_item(list, i, &item));
      out[i] = static_cast<int64_t>(item);
    }
    ok(torch_delete_list(list));
    return out;
  }
};
template <class T>
struct Boxed<std::optional<T>> {
  static std::string name() { return "Optional[" + Boxed<T>::name() + "]"; }
  static std::optional<T> take(StableIValue v) {
    if (!v) return std::nullopt;
    auto* inner = reinterpret_cast<StableIValue*>(v);
    std::optional<T> out(Boxed<T>::take(*inner));
    delete inner;  // torch up to 2.13 allocates it with new, and keeps that for extensions of this ABI version
    return out;
  }
};

template <class T>
struct Returned {
  static std::string name() { return Boxed<T>::name(); }
  static void give(StableIValue* stack, T&& value) { stack[0] = Boxed<T>::give(std::move(value)); }
};
template <class... T>
struct Returned<std::tuple<T...>> {
  static std::string name() {
    std::string out;
    ((out += (out.empty() ? "" : ", ") + Boxed<T>::name()), ...);
    return out;
  }
  static void give(StableIValue* stack, std::tuple<T...>&& values) {
    [&]<size_t... I>(std::index_sequence<I...>) {
      ((stack[I] = Boxed<T>::give(std::move(std::get<I>(values)))), ...);
    }(std::index_sequence_for<T...>{});
  }
};

// One C++ function as a boxed kernel, and its signature in the words of the schema ("Tensor, Optional[Tensor], str -> Tensor").
template <auto Function>
struct BoxedFunction;
template <class R, class... A, R (*Function)(A...)>
struct BoxedFunction<Function> {
  static void run(StableIValue* stack, uint64_t num_inputs, uint64_t) {
    FASTDIFF_CHECK(num_inputs == sizeof...(A), "kernel takes ", sizeof...(A), " arguments, the schema has ", num_inputs);
    [&]<size_t... I>(std::index_sequence<I...>) {
      // Braces take the arguments from left to right; every handle on the stack is owned from here on.
      std::tuple<std::decay_t<A>...> arguments{Boxed<std::decay_t<A>>::take(stack[I])...};
      Returned<R>::give(stack, Function(std::get<I>(arguments)...));
    }(std::index_sequence_for<A...>{});
  }
  static std::string signature() {
    std::string out;
    ((out += (out.empty() ? "" : ", ") + Boxed<std::decay_t<A>>::name()), ...);
    return out + " -> " + Returned<R>::name();
  }
};

struct Kernel {
  const char *op, *key;
  std::string signature;
  BoxedKernel run;
};

inline std::vector<Kernel>& kernels() {
  static std::vector<Kernel> all;
  return all;
}

// FASTDIFF_KERNEL(film, CPU, film_cpu): the function is op `film`'s kernel for dispatch key CPU. library.cpp registers them.
#define FASTDIFF_KERNEL(op, key, function)                                                                          \
  [[maybe_unused]] static const bool op##_##key##_listed =                                                          \
      (::fastdiff::kernels().push_back({#op, #key, ::fastdiff::BoxedFunction<function>::signature(),                \
                                        &::fastdiff::BoxedFunction<function>::run}),                                \
       true)

}  // namespace fastdiff

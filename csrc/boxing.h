// C++ functions as torch kernels: what each type is called in a schema, and how it travels in a StableIValue.
//
// A kernel's signature is read off its C++ type, and Python compares it with the schema before it registers the kernel.
#pragma once
#include <tuple>

#include "torch_abi.h"

namespace fastdiff {

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

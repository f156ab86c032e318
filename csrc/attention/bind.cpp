// attention between torch and the kernels: memory safety, outputs, threads.
#include <algorithm>

#include "../boxing.h"
#include "../common/layout.h"
#include "attention.h"

namespace fastdiff {
namespace {

using MaybeTensor = std::optional<Tensor>;

constexpr int64_t kGrain = 1 << 19;  // products a thread takes at least
constexpr int64_t kFewestRows = 16;

bool same_sizes(const Tensor& a, const Tensor& b) {
  return a.dim() == b.dim() && std::equal(a.sizes(), a.sizes() + a.dim(), b.sizes());
}

DType compute_dtype(const AttentionArgs& a) { return a.dtype == DType::f64 ? DType::f64 : DType::f32; }

// x itself where its rows are contiguous, else a copy that `storage` keeps.
Sequence sequence(const Tensor& x, MaybeTensor& storage) {
  const Tensor& t = x.stride(3) == 1 || x.size(3) == 1 ? x : dense(x, false, storage);
  return {t.data(), t.stride(0), t.stride(1), t.stride(2)};
}

AttentionMask make_mask(const Tensor& m, const AttentionArgs& a, const Tensor& q) {
  const int64_t full[] = {a.images, a.heads, a.queries, a.keys};
  FASTDIFF_CHECK(m.dtype() == DType::b8 || m.dtype() == a.dtype || (m.dtype() == DType::f32 && a.dtype != DType::f64),
                 "attention: mask must be bool, float32 or q's dtype");
  FASTDIFF_CHECK(m.device_type() == q.device_type() && m.device_index() == q.device_index(),
                 "attention: mask must be on q's device");
  FASTDIFF_CHECK(m.dim() <= 4, "attention: mask must broadcast to [N, H, L, S]");
  int64_t strides[4] = {};
  for (int64_t i = 0; i < m.dim(); ++i) {
    const int64_t at = 4 - m.dim() + i;
    FASTDIFF_CHECK(m.size(i) == 1 || m.size(i) == full[at], "attention: mask must broadcast to [N, H, L, S]");
    strides[at] = m.size(i) == 1 ? 0 : m.stride(i);
  }
  return {m.data(), strides[0], strides[1], strides[2], strides[3], m.dtype()};
}

AttentionArgs make_args(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& mask, double scale) {
  FASTDIFF_CHECK(q.dim() == 4 && q.dtype() <= DType::f16,
                 "attention: q must be [N, H, L, D], float32, bfloat16, float16 or float64");
  AttentionArgs a{};
  a.images = q.size(0), a.heads = q.size(1), a.queries = q.size(2), a.d = q.size(3);
  FASTDIFF_CHECK(k.dim() == 4 && k.size(0) == a.images && k.size(1) == a.heads && k.size(3) == a.d,
                 "attention: k must be [N, H, S, D] of q");
  FASTDIFF_CHECK(same_sizes(k, v), "attention: v must have k's shape");
  for (const Tensor* t : {&k, &v}) {
    FASTDIFF_CHECK(t->dtype() == q.dtype(), "attention: k and v must have q's dtype");
    FASTDIFF_CHECK(t->device_type() == q.device_type() && t->device_index() == q.device_index(),
                   "attention: k and v must be on q's device");
  }
  a.keys = k.size(2), a.dtype = q.dtype(), a.scale = scale;
  if (mask) a.mask = make_mask(*mask, a, q);
  return a;
}

// kernel(begin, end) over the blocks of queries, or of keys, of all heads.
template <class Kernel>
void for_blocks(const AttentionArgs& a, int64_t rows, int64_t others, Kernel* kernel, const auto& args) {
  if (a.images * a.heads * rows > 0)
    parallel_for(0, a.images * a.heads * attention_blocks(rows), kGrain / (kAttentionBlock * others * a.d + 1),
                 [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

#define FASTDIFF_ATTENTION_CPU(name, dtype) ((dtype) == DType::bf16 ? FASTDIFF_CPU_BF16(name) : FASTDIFF_CPU(name))

// A contiguous result in the memory format that x suggests.
Tensor laid_out_like(Tensor&& result, const Tensor& x) {
  if (!suggests_channels_last(x)) return std::move(result);
  Tensor out = empty_like(x, true);
  ok(aoti_torch_copy_(out.handle(), result.handle(), 0));
  return out;
}

std::tuple<Tensor, Tensor> attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& mask,
                                         double scale) {
  AttentionArgs a = make_args(q, k, v, mask, scale);
  Tensor out = empty_like(q, false), logsumexp = empty({a.images, a.heads, a.queries}, compute_dtype(a), q);
  MaybeTensor copies[3];
  a.q = sequence(q, copies[0]), a.k = sequence(k, copies[1]), a.v = sequence(v, copies[2]);
  a.out = out.mutable_data(), a.logsumexp = logsumexp.mutable_data();
  for_blocks(a, a.queries, a.keys, FASTDIFF_ATTENTION_CPU(attention_kernel, a.dtype), a);
  return {laid_out_like(std::move(out), q), std::move(logsumexp)};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward_cpu(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                                          const Tensor& out, const Tensor& logsumexp, const MaybeTensor& mask,
                                                          double scale) {
  AttentionBackwardArgs b{};
  AttentionArgs& a = b.forward;
  a = make_args(q, k, v, mask, scale);
  FASTDIFF_CHECK(same_sizes(grad, q) && same_sizes(out, q) && grad.dtype() == a.dtype && out.dtype() == a.dtype,
                 "attention_backward: grad and out must have q's shape and dtype");
  FASTDIFF_CHECK(logsumexp.dim() == 3 && std::equal(q.sizes(), q.sizes() + 3, logsumexp.sizes()) &&
                     logsumexp.dtype() == compute_dtype(a),
                 "attention_backward: logsumexp must be [N, H, L] of q, float32 (double for double)");
  Tensor dq = empty_like(q, false), dk = empty_like(k, false), dv = empty_like(v, false);
  Tensor delta = empty({a.images, a.heads, a.queries}, compute_dtype(a), q);
  MaybeTensor copies[5];
  a.q = sequence(q, copies[0]), a.k = sequence(k, copies[1]), a.v = sequence(v, copies[2]);
  b.grad = sequence(grad, copies[3]);
  a.logsumexp = const_cast<void*>(dense(logsumexp, false, copies[4]).data());  // read only
  b.delta = delta.mutable_data();
  b.dq = dq.mutable_data(), b.dk = dk.mutable_data(), b.dv = dv.mutable_data();
  // Over few rows the roundings of p and ds to bf16 do not average out.
  const bool pairs = a.dtype == DType::bf16 && std::min(a.queries, a.keys) >= kFewestRows;
  for_blocks(a, a.queries, a.keys, pairs ? FASTDIFF_CPU_BF16(attention_dq_kernel) : FASTDIFF_CPU(attention_dq_kernel), b);
  for_blocks(a, a.keys, a.queries, pairs ? FASTDIFF_CPU_BF16(attention_dkdv_kernel) : FASTDIFF_CPU(attention_dkdv_kernel), b);
  return {laid_out_like(std::move(dq), q), laid_out_like(std::move(dk), k), laid_out_like(std::move(dv), v)};
}

FASTDIFF_KERNEL(attention_backward, CPU, attention_backward_cpu);
FASTDIFF_KERNEL(attention, CPU, attention_cpu);

}  // namespace
}  // namespace fastdiff

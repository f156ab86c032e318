// Attention kernels on pointers: out = softmax(scale q k^T + mask) v, and the logarithm of softmax's denominator.
#pragma once
#include <cstdint>

#include "../common/cpu_dispatch.h"
#include "../common/numeric.h"

namespace fastdiff {

// A [N, H, rows, d] tensor whose rows are contiguous; strides in elements.
struct Sequence {
  const void* data;
  int64_t stride_n, stride_h, stride_row;
};

struct AttentionMask {
  const void* data = nullptr;  // null where there is none
  int64_t stride_n = 0, stride_h = 0, stride_query = 0, stride_key = 0;
  DType dtype = DType::b8;  // b8: true where a query may attend to a key; else added to the logits
};

struct AttentionArgs {
  int64_t images, heads, queries, keys, d;
  DType dtype;  // of q, k, v and out
  double scale;
  Sequence q, k, v;
  AttentionMask mask;
  void* out;        // [N, H, L, D], contiguous
  void* logsumexp;  // [N, H, L] in the compute type
};

// The queries of one head are shared out in blocks of at most kAttentionBlock, as even as whole vectors allow.
constexpr int64_t kAttentionBlock = 64, kAttentionLanes = 16;

inline int64_t attention_blocks(int64_t rows) { return (rows + kAttentionBlock - 1) / kAttentionBlock; }

struct Rows {
  int64_t first, last;
};
inline Rows attention_block(int64_t rows, int64_t block) {
  const int64_t blocks = attention_blocks(rows), vectors = (rows + kAttentionLanes - 1) / kAttentionLanes;
  const int64_t last = (block + 1) * vectors / blocks * kAttentionLanes;
  return {block * vectors / blocks * kAttentionLanes, last < rows ? last : rows};
}

struct AttentionBackwardArgs {
  AttentionArgs forward;  // its out unused
  Sequence grad;
  void* delta;         // [N, H, L] in the compute type: sum_j p dp, which the first kernel leaves to the second
  void *dq, *dk, *dv;  // contiguous
};

// Blocks [begin, end) of images * heads * attention_blocks(queries).
FASTDIFF_DECLARE_CPU_BF16(void, attention_kernel, (const AttentionArgs&, int64_t begin, int64_t end))
// dq, and delta. The same blocks.
FASTDIFF_DECLARE_CPU_BF16(void, attention_dq_kernel, (const AttentionBackwardArgs&, int64_t begin, int64_t end))
// dk and dv. Blocks [begin, end) of images * heads * attention_blocks(keys).
FASTDIFF_DECLARE_CPU_BF16(void, attention_dkdv_kernel, (const AttentionBackwardArgs&, int64_t begin, int64_t end))

}  // namespace fastdiff

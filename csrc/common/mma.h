// Products of small matrices by a warp, in bf16 or fp16 with sums in float32 (PTX ISA, "Warp-level matrix instructions").
//
// All 32 lanes come together. With g = lane / 4 and t = lane % 4, a register holding two numbers side by side (the first in its
// lower half), the fragments of sums[16][8] += a[16][16] b[16][8] are
//     a[0..3]: rows g, g + 8, g, g + 8 of a at columns 2t and 2t + 1, for the last two 8 further on
//     b[0..1]: column g of b at rows 2t and 2t + 1, for the last 8 further on
//     sums[0..3]: rows g, g, g + 8, g + 8 at columns 2t, 2t + 1, 2t, 2t + 1
#pragma once
#include "cuda_device.h"
#ifdef FASTDIFF_SIMULATED
#include "simulated_mma.h"
#endif

namespace fastdiff::cuda {

template <class T>
FASTDIFF_INLINE void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef FASTDIFF_SIMULATED
  ::cuda_sim::multiply_add<T>(sums, a, b);
#else
#define FASTDIFF_MMA(type)                                                                                             \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "     \
               "{%8, %9}, {%0, %1, %2, %3};"                                                                           \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (__is_same(T, bf16)) FASTDIFF_MMA("bf16");
  else FASTDIFF_MMA("f16");
#undef FASTDIFF_MMA
#endif
}

// Four matrices of 8 x 8 from shared memory: lanes 0 to 7 say where the rows of the first lie, of 16 bytes, lanes 8 to 15
// those of the second, and so on. out[i] is the i-th matrix' row g at columns 2t and 2t + 1: with the rows of a's four quarters
// in the order of its registers, a fragment.
FASTDIFF_INLINE void load_matrices(uint32_t (&out)[4], const void* row) {
#ifdef FASTDIFF_SIMULATED
  ::cuda_sim::load_matrices<4, false>(out, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

}  // namespace fastdiff::cuda

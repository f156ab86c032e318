// sampler_step on the CPU: the arithmetic is common/diffusion_step_cpu.h's.
#include "../common/diffusion_step_cpu.h"
#include "sampler_step.h"

namespace fastdiff::FASTDIFF_ISA {

void sampler_step_kernel(const StepArgs& a, int64_t begin, int64_t end) { step(a, begin, end); }

}  // namespace fastdiff::FASTDIFF_ISA

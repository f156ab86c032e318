// ddpm_step on the CPU: the arithmetic is common/diffusion_step_cpu.h's.
#include "../common/diffusion_step_cpu.h"
#include "ddpm_step.h"

namespace fastdiff::FASTDIFF_ISA {

void ddpm_step_kernel(const StepArgs& a, int64_t begin, int64_t end) { step(a, begin, end); }

}  // namespace fastdiff::FASTDIFF_ISA

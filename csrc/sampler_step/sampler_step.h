// Kernel of sampler_step on pointers; see fastdiff/ops/sampler_step.py.
#pragma once
#include "../common/cpu_dispatch.h"
#include "../common/diffusion_step.h"

namespace fastdiff {

// Tiles [begin, end) of the walk.
FASTDIFF_DECLARE_CPU(void, sampler_step_kernel, (const StepArgs&, int64_t begin, int64_t end))

const char* sampler_step_cuda_launch(const StepArgs&, void* stream);

}  // namespace fastdiff

// sampler_step on CUDA: the arithmetic is common/diffusion_step_cuda.h's.
#include "../common/diffusion_step_cuda.h"
#include "sampler_step.h"

namespace fastdiff {

const char* sampler_step_cuda_launch(const StepArgs& a, void* stream) { return cuda::step(a, stream); }

}  // namespace fastdiff

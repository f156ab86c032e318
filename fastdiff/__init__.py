"""fastdiff: fast convolutional and diffusion models in PyTorch, on our own C++, CUDA and Triton kernels."""

"""The path on GPUs: Triton kernels. All but settings and caching are imported where a GPU first needs them."""

"""The operators as Triton kernels. Modules here are imported where a GPU first needs them."""

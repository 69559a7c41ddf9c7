"""What several benchmarks share: measuring, contenders, their kernels."""

"""The operators by PyTorch's own, for every device."""

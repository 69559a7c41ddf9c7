"""The operators as compiled code for CPUs."""

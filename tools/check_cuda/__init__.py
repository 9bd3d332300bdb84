"""Compile the decoder layers for a CUDA card, on a machine without one."""

"""Decoding on a GPU, one captured graph for every budget: a chain of fused kernels instead of module calls."""

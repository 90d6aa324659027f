"""Speed and memory on a GPU, measured the way decode runs: in a CUDA graph, with weights that are in no cache."""

"""Kernels: `reference.py` is the definition, the others are faster ways to the same result.

Importing this package imports no triton and touches no GPU; `dispatch.py` decides at call time.
"""

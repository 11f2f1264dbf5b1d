"""Kernels of Triton: which versions are installed, and launches without Triton's Python. For layouts and backends."""

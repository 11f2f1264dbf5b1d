"""Benchmark of dilated-attention-pytorch and other attention libraries, in one run and with one mask."""

"""Rewrites uses of the hierarchical attention that dilated-attention-pytorch removed on 2025-07-07."""

__version__ = "0.3.0"

"""The CPU backend."""

from __future__ import annotations

from .backend import CPU, CpuBackend

__all__ = ["CPU", "CpuBackend"]

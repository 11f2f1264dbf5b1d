"""Runs the Gluon kernels of the Hopper backend on the CPU: their numbers, lists, barriers and memory accesses.

The kernels are imported with stand-ins for Gluon (language.py), so that they are ordinary functions of Python; every
partition of a program is a thread, of which one runs at a time (schedule.py). What a kernel must not do is an error.
"""

from .calls import backward, forward, run
from .comparison import errors
from .kernels import emulated
from .launches import emulated_launches
from .schedule import Deadlock, EmulatorError

__all__ = [
    "Deadlock",
    "EmulatorError",
    "backward",
    "emulated",
    "emulated_launches",
    "errors",
    "forward",
    "run",
]

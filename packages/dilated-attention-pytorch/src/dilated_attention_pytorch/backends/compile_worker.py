"""A process that compiles kernels for another one (compile_workers.py): run as a script, it imports neither torch nor the library.

A job is read from the standard input, and answered with a line. Without a job for a while, or behind the last one, it ends.
"""

from __future__ import annotations

import importlib
import os
import pickle
import select
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

IDLE_SECONDS = 120.0
ROOT = Path(__file__).resolve().parents[1]  # the folder of the library


class Job(NamedTuple):
    """A kernel as Triton describes it, with where it is."""

    module: str
    name: str
    signature: dict[str, Any]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]
    target: tuple[Any, ...]


def kernel_of(module: str, name: str) -> Any:
    """A kernel of the library; the packages that it is in are not run, they import torch."""
    names = module.split(".")
    for i in range(1, len(names)):
        package = ".".join(names[:i])
        if package not in sys.modules:
            stands_in = types.ModuleType(package)
            stands_in.__path__ = [str(ROOT.joinpath(*names[1:i]))]
            sys.modules[package] = stands_in
    return getattr(importlib.import_module(module), name)


def compile_job(job: Job) -> None:
    """Compile it; Triton keeps it on the disk."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel = kernel_of(job.module, job.name)
    source = GluonASTSource if kernel.is_gluon() else ASTSource
    made = source(kernel, job.signature, job.constants, job.attributes)
    triton.compile(made, target=GPUTarget(*job.target), options=job.options)


def without_this_folder(paths: list[str]) -> list[str]:
    """The paths but that of this file, whose triton/ is not Triton. Python puts it first, but not with PYTHONSAFEPATH."""
    here = Path(__file__).resolve().parent
    return [path for path in paths if Path(path).resolve() != here]


def main() -> None:
    """Do the jobs of the standard input."""
    sys.path[:] = without_this_folder(sys.path)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers print
    jobs = sys.stdin.buffer
    # one job at a time is given, so nothing is left in the buffer
    while select.select([jobs], [], [], IDLE_SECONDS)[0]:
        try:
            fields = pickle.load(jobs)
        except EOFError:
            return
        try:
            compile_job(Job(*fields))
            answer = "done"
        except Exception as error:  # the other process then compiles it, and tells what is wrong
            answer = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main()

"""Which backend serves a call, and why the others do not."""

from __future__ import annotations

from .cpu import CPU
from .hopper import HOPPER
from .problem import AttentionProblem, Backend
from .triton import TRITON

# In order of choice. `reference` is never chosen: dense attention in disguise must be asked for by name.
BACKENDS: tuple[Backend, ...] = (CPU, HOPPER, TRITON)
BACKEND_NAMES = ("auto", *(backend.name for backend in BACKENDS), "reference")


def backend_named(name: str) -> Backend:
    """The backend of this name."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"backend must be one of {BACKEND_NAMES}, got {name!r}")


def reasons(problem: AttentionProblem) -> dict[str, str | None]:
    """For every backend None, or why it cannot serve the call."""
    return {backend.name: backend.rejects(problem) for backend in BACKENDS}


def backend_for_backward(name: str, problem: AttentionProblem) -> Backend:
    """The backend of the forward, or the first of the others where it has no backward for the problem."""
    forward = backend_named(name)
    for backend in (forward, *BACKENDS):
        if backend.rejects_backward(problem) is None and (
            backend is forward or backend.rejects(problem) is None
        ):
            return backend
    raise ValueError(f"no backend has a backward for this call: {forward.rejects_backward(problem)}")


def choose_backend(problem: AttentionProblem, requested: str | None = None) -> Backend:
    """The requested backend, or the first that serves the call.

    Raises:
        ValueError: the requested backend, or every backend, cannot serve the call; the message says why.
    """
    if requested is not None and requested != "auto":
        backend = backend_named(requested)
        why_not = backend.rejects(problem)
        if why_not is not None:
            raise ValueError(f"backend={requested!r} cannot serve this call: {why_not}")
        why_not = backend.rejects_backward(problem)
        if why_not is not None and problem.needs_grad:
            raise ValueError(
                f"backend={requested!r} cannot serve the backward of this call: {why_not}; without a backend the "
                f"backward is that of {backend_for_backward(requested, problem).name!r}"
            )
        return backend
    for backend in BACKENDS:
        if backend.rejects(problem) is None:
            return backend
    whys = "; ".join(f"{name}: {why_not}" for name, why_not in reasons(problem).items())
    raise ValueError(
        f"no fast backend can serve this call ({whys}); backend='reference' is dense and slow, but always can"
    )

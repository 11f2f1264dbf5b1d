"""Which backend serves a call, and why the others do not."""

from __future__ import annotations

from .cpu import CPU
from .decode_problem import DecodeProblem
from .hopper import HOPPER, note_other_backend
from .problem import AttentionProblem, Backend
from .triton import TRITON

# In order of choice. `reference` is never chosen automatically, because it is dense.
BACKENDS: tuple[Backend, ...] = (CPU, HOPPER, TRITON)
COMPILED_NAMES = (HOPPER.name, TRITON.name)  # those with kernels for a GPU
BACKEND_NAMES = ("auto", *(backend.name for backend in BACKENDS), "reference")


def backend_named(name: str) -> Backend:
    """The backend of this name."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"backend must be one of {BACKEND_NAMES}, got {name!r}")


def reasons(problem: AttentionProblem) -> dict[str, str | None]:
    """Per backend, None or why it cannot serve the call."""
    return {backend.name: backend.rejects(problem) for backend in BACKENDS}


def choose_decode_backend(problem: DecodeProblem, requested: str | None = None) -> Backend:
    """`choose_backend` for a decoding call."""
    if requested is not None and requested != "auto":
        backend = backend_named(requested)
        why_not = backend.rejects_decode(problem)
        if why_not is not None:
            raise ValueError(f"backend={requested!r} cannot serve this call: {why_not}")
        return backend
    whys = []
    for backend in BACKENDS:
        why_not = backend.rejects_decode(problem)
        if why_not is None:
            return backend
        whys.append(f"{backend.name}: {why_not}")
    raise ValueError(
        f"no fast backend can serve this call ({'; '.join(whys)}); backend='reference' is dense and slow, but always can"
    )


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
        return backend
    for backend in BACKENDS:
        if backend.rejects(problem) is None:
            if backend is TRITON:
                note_other_backend(problem)
            return backend
    whys = "; ".join(f"{name}: {why_not}" for name, why_not in reasons(problem).items())
    raise ValueError(
        f"no fast backend can serve this call ({whys}); backend='reference' is dense and slow, but always can"
    )


def choose_backend_for(
    problem: AttentionProblem, capability: tuple[int, int], requested: str | None = None
) -> Backend:
    """`choose_backend` for a GPU of a compute capability, wherever the tensors are."""
    if requested is not None and requested != "auto":
        backend = backend_named(requested)
        why_not = backend.rejects_for(problem, capability)
        if why_not is not None:
            raise ValueError(f"backend={requested!r} cannot serve this call: {why_not}")
        return backend
    whys = []
    for backend in BACKENDS:
        why_not = backend.rejects_for(problem, capability)
        if why_not is None:
            return backend
        whys.append(f"{backend.name}: {why_not}")
    raise ValueError(f"no backend serves this call on compute capability {capability} ({'; '.join(whys)})")

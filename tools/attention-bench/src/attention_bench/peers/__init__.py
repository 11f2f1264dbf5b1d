"""The libraries that are compared, one file each, behind a small interface."""

from __future__ import annotations

from collections.abc import Sequence

from ..cases import Case
from .base import Attend, Peer
from .bsa import BSA
from .decoding import DECODING
from .dense import CUDNN, FA2, SDPA
from .fa4 import FA4
from .flashinfer import FLASHINFER
from .flex import FLEX
from .natten import NATTEN
from .ours import OURS
from .vsa import VSA

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (*OURS, *DECODING, FLEX, *FA4, *BSA, VSA, FLASHINFER, NATTEN, CUDNN, FA2, SDPA)
}


def serving(names: Sequence[str], cases: Sequence[Case], device: str) -> list[str]:
    """The default peers of a command without those that serve none of its cases, which are named."""
    found = []
    for name in names:
        reasons = [PEERS[name].rejects(case, device) for case in cases]
        if all(reason is not None for reason in reasons):
            print(f"{name} is left out: {reasons[0]}", flush=True)
        else:
            found.append(name)
    return found


__all__ = ["PEERS", "Attend", "Peer", "serving"]

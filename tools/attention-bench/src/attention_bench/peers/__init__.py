"""The libraries that are compared, one file each, behind a small interface."""

from __future__ import annotations

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

__all__ = ["PEERS", "Attend", "Peer"]

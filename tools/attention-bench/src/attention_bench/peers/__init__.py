"""The libraries that are compared, one file each, behind a small interface."""

from __future__ import annotations

from .base import Attend, Peer
from .decoding import DECODING
from .dense import CUDNN, FA2, SDPA
from .fa4 import FA4
from .flex import FLEX
from .ours import OURS

PEERS: dict[str, Peer] = {peer.name: peer for peer in (*OURS, *DECODING, FLEX, FA4, CUDNN, FA2, SDPA)}

__all__ = ["PEERS", "Attend", "Peer"]

"""Settings of all tests: Ctrl-C reaches the processes that tests start."""

from __future__ import annotations

import signal

# A shell starts background jobs with Ctrl-C ignored, and their child processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

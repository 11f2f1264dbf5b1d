"""Settings of all tests: Ctrl-C reaches the processes that tests start, and garbage is collected among what tests make."""

from __future__ import annotations

import gc
import signal

# A shell starts background jobs with Ctrl-C ignored, and their child processes inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Thousands of tests and all of torch stay: every collection of garbage would look through them again."""
    gc.collect()
    gc.freeze()

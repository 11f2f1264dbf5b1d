"""Settings of all tests: a Ctrl-C that the processes of the tests hear."""

from __future__ import annotations

import signal

# A shell starts what runs in the background with Ctrl-C ignored, and every process started from there inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

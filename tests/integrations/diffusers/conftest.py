"""diffusers needs Python 3.11."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("diffusers") else ["test_*.py"]

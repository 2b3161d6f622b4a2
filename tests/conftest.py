"""What all tests have in common: reproducible hypothesis runs, and no more threads than a test asks for."""

from __future__ import annotations

import gc
import os

from hypothesis import settings

# Graphs are millions of small objects; looking through them as often as usual is a tenth of the suite. The command line does not.
gc.set_threshold(100_000, 20, 100)

# two test processes on two cores: libraries that start a thread for every core only get in each other's way
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("inarch", database=None, deadline=None, derandomize=True, print_blob=True)
settings.load_profile("inarch")

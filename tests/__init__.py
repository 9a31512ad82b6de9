"""Tests, which mirror the packages."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests share the machine, and compare

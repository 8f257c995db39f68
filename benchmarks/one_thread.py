"""Studies whose trainings share a machine, or whose results depend on the order of sums, run on one thread."""

import os


def require_one_thread() -> None:
    """End the program unless OpenMP, which is told before torch is imported, has one thread."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("This study runs on one thread.\nNext: export OMP_NUM_THREADS=1, and start it again")

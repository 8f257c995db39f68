"""What this CPU can do for int8 models."""

from __future__ import annotations

from pathlib import Path

# VNNI of x86 (256 and 512 bits) and the dot product of ARM, as Linux names them. Without them ONNX Runtime adds pairs
# of products in 16 bits, where two of 8-bit activations with 8-bit weights overflow.
_DOT_PRODUCTS = {"avx_vnni", "avx512_vnni", "asimddp"}
_CPUINFO = Path("/proc/cpuinfo")


def has_int8_dot_product(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this CPU multiplies and adds int8 exactly in one instruction; False where nothing says so."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # not Linux
        return False
    flags = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))]
    # Every core has to: a process may be moved to any of them.
    return bool(flags) and all(_DOT_PRODUCTS & set(core) for core in flags)

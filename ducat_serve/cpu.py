"""What this CPU can do for int8 models."""

from __future__ import annotations

from pathlib import Path

from ducat_serve.spec import ModelSpec

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


def overflow_warning(spec: ModelSpec) -> str | None:
    """What to say of a model whose sums may overflow on this CPU; None for every other."""
    record = spec.quantisation
    if record is None or record.reduced_range or has_int8_dot_product():
        return None
    return (
        "it was quantised for CPUs with an int8 dot product (VNNI), which this one has not: sums may overflow, and it "
        "may answer otherwise than where it was measured. Export it again on a CPU like this one."
    )

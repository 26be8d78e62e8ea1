"""What a measurement must know of the machine it is taken on: the processor's name, and the memory of this process."""

import platform
import sys
from pathlib import Path

__all__ = ["RETURN", "peak_resident", "processor"]

RETURN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc's allocator gives freed blocks back, so that the peak is what was needed at once."""


def peak_resident() -> float:
    """MiB of memory that this process had at its peak; 0 where the system does not tell.

    From /proc where there is one, because getrusage passes a parent's peak on to its child.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"

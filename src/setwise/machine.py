"""The machine: its processor's name, the memory of this process, and the home folder of whoever runs it."""

import os
import platform
import sys
from pathlib import Path

__all__ = ["RETURN", "at_home", "peak_resident", "processor", "resident"]

STATUS = Path("/proc/self/status")
RETURN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc's allocator gives freed blocks back, so that the peak is what was needed at once."""


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path with the home folder in the place of ~, which shells leave in --out=~/runs; others as they are.

    Path.expanduser ends in an error where ~name is a file and no user.

    >>> at_home("~/runs").is_absolute(), str(at_home("~photo.jpg"))
    (True, '~photo.jpg')
    """
    return Path(os.path.expanduser(path))


def peak_resident() -> float:
    """MiB of memory that this process had at its peak; 0 where the system does not tell.

    From /proc where there is one, because getrusage passes a parent's peak on to its child.
    """
    if STATUS.is_file():
        return _status("VmHWM")
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def resident() -> float:
    """MiB of memory that this process has now; 0 where the system has no /proc to tell."""
    return _status("VmRSS") if STATUS.is_file() else 0.0


def _status(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"

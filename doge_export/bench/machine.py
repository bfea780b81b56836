"""What a figure was measured on."""

__all__ = ["describe", "usable_cpus"]

import os
import platform
from pathlib import Path
from typing import Any


def usable_cpus() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """The processor, its instruction sets that matter here, the memory and the system."""
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cpu_family": _numbers(info),
        "cpu_features": sorted(flag for flag in flags if flag.startswith(_FEATURES)),
        "cpus": usable_cpus(),
        "cache": info.get("cache size"),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


_FEATURES = ("avx", "fma", "f16c", "amx", "asimd", "i8mm", "sve")


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; nothing where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = text.split("\n\n", 1)[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _numbers(info: dict[str, str]) -> str | None:
    """Family, model and stepping: a virtual machine often hides the name."""
    keys = ("cpu family", "model", "stepping")
    return "/".join(info[key] for key in keys) if all(key in info for key in keys) else None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None

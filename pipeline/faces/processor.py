"""What arithmetic this machine's processor has."""

from __future__ import annotations

from pathlib import Path


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; elsewhere bf16 is emulated, and slower than fp32."""
    return _cpu_has("avx512_bf16", "amx_bf16")


def cpu_has_bf16_convolutions() -> bool:
    """Whether oneDNN has convolutions in bf16 for this CPU; elsewhere PyTorch raises RuntimeError."""
    flags = _cpu_flags()
    return not flags or "avx_ne_convert" in flags or {"avx512bw", "avx512vl", "avx512dq"} <= flags


def cpu_has_int8() -> bool:
    """Whether the CPU adds up products of bytes in 32 bits; elsewhere they meet in 16 bits, and are cut off there."""
    return _cpu_has("avx512_vnni", "avx_vnni", "amx_int8")


def _cpu_has(*flags: str) -> bool:
    return not _cpu_flags().isdisjoint(flags)


def _cpu_flags() -> frozenset[str]:
    """The words of /proc/cpuinfo, the processor's flags among them; none where it is not there."""
    cpuinfo = Path("/proc/cpuinfo")
    return frozenset(cpuinfo.read_text(errors="replace").split() if cpuinfo.exists() else ())

"""The plan: how many clients are one program, and how many programs run side by side."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

FULL = 5e7
"""Floating-point operations of one client's step from which a core is busy with it: stacking gains nothing there, and
costs locality. Between an MLP of 5 MFLOP, which gains, and a CNN of 245, which does not (docs/performance.md)."""

CACHE = 2**24
"""Bytes of state that a worker's slice of a program may have on a CPU: each step goes through all of it, and from main
memory that takes half as long again (docs/performance.md)."""

SHARE = 4
"""All chunks together may carry this part of the memory: gradients, activations and examples need as much again."""

COMPILE = 30_000
"""Steps of clients, over all planned rounds, that repay a C compiler (docs/performance.md)."""


@dataclass(frozen=True)
class Plan:
    """How a cohort is run."""

    chunk: int  # most clients in one program
    workers: int  # programs side by side
    why: str

    def __str__(self) -> str:
        clients = "one client" if self.chunk == 1 else f"at most {self.chunk} clients"
        side = "" if self.workers == 1 else f", {self.workers} programs side by side"
        return f"{clients} in one program{side}: {self.why}"


def plan(
    device: torch.device,
    *,
    flops_per_step: float,
    bytes_per_client: int,
    chunk: int = 0,
    workers: int = 0,
    room: int = 0,
) -> Plan:
    """The plan for a device, from what a step of one client costs.

    It never follows from the clock: another plan rounds differently, and a rerun must have the same bits.

    Args:
        device: where the clients train.
        flops_per_step: floating-point operations of one client's step.
        bytes_per_client: state that one client carries through its steps.
        chunk: most clients in one program, if the user chose; 0 leaves the choice.
        workers: programs side by side, likewise.
        room: bytes of memory there; 0: those of this machine's device.
    """
    on_cpu = device.type == "cpu"
    workers = workers or (cores() if on_cpu else 1)
    if chunk:
        return Plan(chunk, workers, "as chosen")
    if on_cpu and flops_per_step >= FULL:
        return Plan(1, workers, f"a step of one client is {flops_per_step / 1e6:.0f} MFLOP, which fills a core")
    bytes_per_client = max(1, bytes_per_client)
    room = (room or memory(device)) // (SHARE * workers * bytes_per_client)
    most = 256 if on_cpu else 1024
    near = max(2, CACHE // bytes_per_client) * workers if on_cpu else most
    if room < min(most, near):
        return Plan(max(1, int(room)), workers, f"more would need over 1/{SHARE} of the memory")
    if near < most:
        return Plan(near, workers, f"more would not stay in the caches, at {bytes_per_client / 2**20:.1f} MiB for each")
    return Plan(most, workers, f"a step of one client is {flops_per_step / 1e6:.1f} MFLOP, too small for a program")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(device: torch.device) -> int:
    """Bytes of memory that a device has; not what others leave of it at this moment, which would change the plan."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**33

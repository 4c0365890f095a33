"""Hardware that training times are estimated for, with the figures of its public data sheets."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from .precision import feasible


@dataclass(frozen=True)
class Hardware:
    """One device and its links.

    Attributes:
        name: Name of the product.
        half: Operations per second in bfloat16, dense, with sums in float32.
        single: Operations per second in float32.
        memory: Bytes of memory; ``None`` if it is unknown.
        bandwidth: Bytes per second that are read from or written to the memory.
        link: Bytes per second and direction to the other devices of the same machine.
        network: Bytes per second and direction to other machines, for each device. Data sheets do not contain it: it is
            that of common machines.
        share: Share of the operations per second in bfloat16 that training reaches. It is an assumption.
        single_share: Share of those in float32. It is an assumption.
        dollars: Price per device and hour. It is an assumption, as prices differ between providers and over time.
    """

    name: str
    half: float
    single: float
    memory: float | None
    bandwidth: float
    link: float
    network: float
    share: float = 0.4
    single_share: float = 0.4
    dollars: float = 0.0


HARDWARE = {
    "a100": Hardware("NVIDIA A100 80GB SXM", 312e12, 19.5e12, 80e9, 2039e9, 300e9, 25e9, dollars=1.8),
    "h100": Hardware("NVIDIA H100 SXM", 989e12, 67e12, 80e9, 3350e9, 450e9, 50e9, dollars=3.0),
    "l4": Hardware("NVIDIA L4", 121e12, 30.3e12, 24e9, 300e9, 32e9, 3e9, dollars=0.7),
    "4090": Hardware("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12, 24e9, 1008e9, 32e9, 3e9, dollars=0.4),
}
"""Devices by name. ``cpu`` is this machine, which :func:`measured` measures."""

DEVICES_PER_MACHINE = 8
"""Number of devices beyond which processes communicate over the network."""


def measured() -> Hardware:
    """This machine's processor, by the speed of matrix products and of a copy, in about a tenth of a second.

    A product in bfloat16 includes the conversion of its factors, as in training.
    """
    matrix, speed = torch.ones(1024, 1024), {}
    for half in (False, feasible("bf16-mixed", "cpu") == "bf16-mixed"):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            speed[half] = 2 * 1024**3 / min(_seconds(partial(torch.matmul, matrix, matrix)) for _ in range(4))
    values, copies = torch.ones(8_000_000), torch.ones(8_000_000)
    copied = 2 * values.nbytes / min(_seconds(partial(copies.copy_, values)) for _ in range(4))
    single = speed[False]
    fastest, share = (speed[True], 0.5) if True in speed else (single, 0.6)  # only products are faster in bfloat16
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    links = {"bandwidth": copied, "link": copied, "network": copied}
    return Hardware("this processor", fastest, single, memory, **links, share=share, single_share=0.6)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start

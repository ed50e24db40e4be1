"""GPUs by name: memory and the rate of dense matrix products in bf16 with sums in fp32, as their makers state them.

Sources: NVIDIA's data sheets of A100, H100 (SXM), H200, L40S, L4, A10, RTX A6000 (rates with sparsity halved), and its
Ada and GA102 white papers for RTX 4090 and 3090. Usable memory is less than the name says: what CUDA and NCCL keep
is RESERVED (not measured: no GPU was at hand).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30
RESERVED = 1.5 * GIB  # of every GPU: CUDA's context, cuBLAS' workspace, NCCL's buffers
FRAGMENTED = 0.05  # of activations: what the allocator holds and cannot use


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float  # bytes
    rate: float  # FLOPs a second


_TABLE = {
    "A100-40G": (40, 312.0),
    "A100-80G": (80, 312.0),
    "H100-80G": (80, 989.4),
    "H200-141G": (131.3, 989.4),  # 141 GB of 10^9 bytes
    "L40S-48G": (45, 362.0),  # 48 GB less ECC
    "A6000-48G": (48, 154.8),
    "L4-24G": (22.5, 121.0),  # 24 GB less ECC
    "A10-24G": (22.5, 125.0),  # 24 GB less ECC
    "4090-24G": (24, 165.2),
    "3090-24G": (24, 71.0),
}
GPUS = {name: Gpu(name, memory * GIB, rate * 1e12) for name, (memory, rate) in _TABLE.items()}


def parse_gpus(text: str) -> tuple[int, Gpu]:
    """`8xA100-80G` -> (8, that GPU). ValueError names those that are known."""
    match = re.fullmatch(r"(?:(\d+)x)?(.+)", text.strip())
    by_name = {name.lower(): gpu for name, gpu in GPUS.items()}
    if match is None or match[2].lower() not in by_name or match[1] == "0":
        raise ValueError(f"--gpus {text}: expected COUNTxNAME, such as 8xA100-80G, with one of {', '.join(GPUS)}")
    return int(match[1] or 1), by_name[match[2].lower()]

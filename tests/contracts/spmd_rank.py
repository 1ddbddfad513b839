"""One rank of the spmd contract: runs every case, in order, and writes what came of it to a file.

``python spmd_rank.py OUT`` under RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. The ranks are started once, since
each of them imports torch.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from spmd_cases import CASES, STEPS

from insitu.core import wire
from insitu.engines.spmd import Spmd


def main(out: Path) -> None:
    torch.set_num_threads(1)
    engine = Spmd(timeout=120.0, lanes=3, compile=False)
    ranks = engine.ranks()
    for name, case in {**CASES, **STEPS}.items():
        told: dict[str, Any]
        try:
            told = case(engine)
        except Exception:
            told = {"error": traceback.format_exc()}
        (out / f"{name}.{ranks.rank}").write_bytes(wire.encode(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A script for SLURM: one torchrun a node, which meet at the first node of the job."""

from __future__ import annotations

import shlex
from pathlib import Path

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task={workers}
#SBATCH --time=24:00:00
#SBATCH --output={name}-%j.log
# With GPUs, one a rank:
##SBATCH --gpus-per-node={workers}

# Made by insitu launch --slurm: {nodes} node{s} with {workers} rank{t} each. Change what your cluster wants otherwise, then:
#   sbatch THIS_FILE
# The store of the configuration must lie on a file system that all nodes see: whoever is rank 0 writes it, and a job
# that is requeued (scontrol requeue, a failed node) goes on from its last committed round, for it has the same id.

set -euo pipefail
cd {folder}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 torchrun \\
  --nnodes={nodes} --nproc-per-node={workers} --max-restarts={restarts} \\
  --rdzv-backend=c10d --rdzv-endpoint="$head:${{INSITU_PORT:-29400}}" --rdzv-id="insitu-$SLURM_JOB_ID" \\
  -m insitu run {file}{changes}
"""


def script(file: Path, changes: list[str], nodes: int, workers: int, restarts: int) -> str:
    """The text of a job for sbatch."""
    whole = file.absolute()
    return SCRIPT.format(
        name=f"insitu-{whole.stem}",
        nodes=nodes,
        workers=workers,
        s="s" * (nodes > 1),
        t="s" * (workers > 1),
        restarts=int(restarts),
        folder=shlex.quote(str(whole.parent)),
        file=shlex.quote(whole.name),
        changes="".join(f" \\\n  --set {shlex.quote(change)}" for change in changes),
    )

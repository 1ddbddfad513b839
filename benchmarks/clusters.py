"""Ranks of this machine against a loop written by hand, and against one rank.

    python benchmarks/clusters.py ddp [--workers 2] [--pairs 15] [--json FILE]
    python benchmarks/clusters.py federated [--workers 2] [--pairs 9] [--json FILE]
    python benchmarks/clusters.py ceiling [--workers 2] [--pairs 9] [--json FILE]

ddp        synchronous data parallel of a GPT (0.8 million parameters, sequences of 64 characters, AdamW) with
           ``engine="spmd"``, against a DistributedDataParallel loop by hand with ``torch.optim.AdamW``: on the same
           ranks, in turn, the order changing every pair. The figure is the loop's seconds over insitu's: 1 is as fast
federated  the MLP workload of ``insitu bench simulate`` (1000 clients, 100 a round): one rank's seconds of a round over
           ``workers`` times those of so many ranks. One rank and all of them take turns of ``ROW`` rounds, on the same
           rounds: a process that has just waited is slower for a while
ceiling    what the second could be at best on this machine: ``workers`` processes of one rank each, which do the whole
           workload at the same time and exchange nothing, against one of them alone. Cores that share caches, memory
           and heat do less together than one by one, whatever the ranks do

All print the median over pairs and its quartiles. Whoever does not run waits in a socket, and takes no CPU. The second
figure is the same in CPU seconds, summed over ranks: on a machine that is busy with other things it says what ranks
cost, where the first says who got the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import insitu
from insitu.algorithms.data_parallel import DataParallel
from insitu.algorithms.fedavg import FedAvg
from insitu.core.batches import cut, pooled
from insitu.core.protocols import Setting
from insitu.data.clients import Clients
from insitu.engines.spmd import Spmd
from insitu.learners.torch import TorchLearner
from insitu.rounds.memory import Memories
from insitu.rounds.outcome import Model
from insitu.rounds.server import Server

LETTERS, LENGTH, WIDTH, HEADS, LAYERS = 65, 64, 128, 4, 4
BATCH, STEPS, LR = 32, 8, 3e-4
EXAMPLES = 4096
ROW = 5
"""Rounds of the federated workload in a turn."""


class Block(nn.Module):
    """Attention and a perceptron, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.first(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


class Gpt(nn.Module):
    """A small language model of characters."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, WIDTH), nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, LETTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.letters(x) + self.places)))


def text() -> tuple[np.ndarray, np.ndarray]:
    """Windows of characters and the characters that follow, made up."""
    random = np.random.default_rng(0).integers(0, LETTERS, (EXAMPLES, LENGTH + 1))
    return random[:, :-1].copy(), random[:, 1:].copy()


def gpt() -> Gpt:
    torch.manual_seed(0)
    return Gpt()


# ------------------------------------------------------------ the loop by hand


def by_hand(world: int, rank: int) -> Iterator[None]:
    """STEPS steps of DistributedDataParallel, each time it is asked."""
    x, y = (torch.from_numpy(column) for column in text())
    model: nn.Module = gpt()
    if world > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    step = 0
    while True:
        losses = []
        for _ in range(STEPS):
            index = torch.from_numpy(cut(pooled(EXAMPLES, BATCH, step, 1), rank, world).copy())
            loss = F.cross_entropy(model(x[index]).flatten(0, 1), y[index].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            step += 1
        float(torch.stack(losses).mean())  # as insitu's round ends: with a loss to look at
        yield


def insitus(plan: insitu.Plan, clients: Any, engine: Spmd) -> Iterator[None]:
    """A round, each time it is asked: the server's round, without store and events."""
    plan.learner.check(clients.at(0))
    memories = Memories()
    session = engine.open(Setting(plan, clients, memories, 500, 1, notify=lambda text: None))
    server = Server("bench", plan, session, clients, memories, 1)
    model = Model(0, plan.algorithm.init(plan.learner.init(1)))
    while True:
        outcome = server.run_round(model, model.version + 1)
        assert outcome.model is not None, outcome.reason
        model = outcome.model
        yield


def ddp_plan() -> tuple[insitu.Plan, Any]:
    algorithm = DataParallel(lr=LR, batch_size=BATCH, steps=STEPS, optimizer="adamw")
    learner = TorchLearner(gpt(), metrics=())
    return insitu.Plan(algorithm, learner=learner), Clients.from_arrays(*text())


def federated_plan() -> tuple[insitu.Plan, Any]:
    from insitu.bench import models, workload

    work = workload.features()
    clients = Clients.from_arrays(work.x, work.y, work.parts())
    algorithm = FedAvg(lr=workload.LR, batch_size=workload.BATCH)
    torch.manual_seed(0)
    learner = TorchLearner(models.make("mlp"), metrics=())
    return insitu.Plan(algorithm, learner=learner, cohort=insitu.Uniform(work.cohort), block=10), clients


# ------------------------------------------------------------ a rank


def rank(what: str, line: socket.socket) -> None:
    """One process: does what its line says, one letter at a time, and answers with the seconds."""
    torch.set_num_threads(1)
    engine = Spmd(timeout=120, lanes=8 if what == "federated" else None, compile=False)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    ranks = engine.ranks()
    jobs: dict[bytes, Iterator[None]] = {}
    if what == "ddp":
        jobs[b"h"] = by_hand(world, ranks.rank)
        jobs[b"i"] = insitus(*ddp_plan(), engine)
    else:
        jobs[b"i"] = insitus(*federated_plan(), engine)
    while letter := line.recv(1):
        began = time.process_time()
        for _ in range(ROW if what == "federated" else 1):
            next(jobs[letter])
        line.sendall(f"{time.process_time() - began!r}\n".encode())
    ranks.leave("")
    if dist.is_initialized():
        dist.destroy_process_group()


class Group:
    """Processes that were started, and their lines: ranks of one run or, ``apart``, each a run of its own."""

    def __init__(self, what: str, workers: int, apart: bool = False) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        self.lines, self.processes = [], []
        for number in range(workers):
            mine, theirs = socket.socketpair()
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            if workers > 1 and not apart:
                env |= {
                    "RANK": str(number),
                    "WORLD_SIZE": str(workers),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                }
            command = [sys.executable, __file__, what, "--line", str(theirs.fileno())]
            self.processes.append(subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()]))
            theirs.close()
            self.lines.append(mine)

    def ask(self, letter: bytes) -> tuple[float, float]:
        """Seconds until the last rank has done this, and CPU seconds of all."""
        began, used = time.perf_counter(), 0.0
        for line in self.lines:
            line.sendall(letter)
        for line in self.lines:
            answer = b""
            while not answer.endswith(b"\n"):
                part = line.recv(64)
                if not part:
                    raise SystemExit("a rank has ended: its error is above")
                answer += part
            used += float(answer)
        return time.perf_counter() - began, used

    def close(self) -> None:
        for line in self.lines:
            line.close()
        for process in self.processes:
            process.wait(30)


def paired(what: str, workers: int, pairs: int) -> list[tuple[float, float]]:
    """The figures of each pair: by the clock, and by CPU."""
    if what == "ddp":
        one = many = Group(what, workers)
    else:
        many, one = Group("federated", workers, apart=what == "ceiling"), Group("federated", 1)
    first = b"h" if what == "ddp" else b"i"
    # Ranks share the rounds that one rank does; processes apart do them all, each.
    scale, cpu_scale = {"ddp": (1, 1), "federated": (workers, 1), "ceiling": (1, workers)}[what]
    try:
        for _ in range(3):  # memory, kernels, choices
            one.ask(first)
            many.ask(b"i")
        figures = []
        for pair in range(pairs):
            order = [(one, first), (many, b"i")]
            seconds = {}
            for group, letter in order if pair % 2 == 0 else order[::-1]:
                seconds[group is many and letter == b"i"] = group.ask(letter)
            (plain, plain_cpu), (ours, ours_cpu) = seconds[False], seconds[True]
            figures.append((plain / (scale * ours), cpu_scale * plain_cpu / ours_cpu))
        return figures
    finally:
        many.close()
        one.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ddp", "federated", "ceiling"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--line", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.line is not None:
        rank(given.what, socket.socket(fileno=given.line))
        return
    figures = paired(given.what, given.workers, given.pairs)
    name = {
        "ddp": "throughput over DistributedDataParallel's",
        "federated": "efficiency against one rank",
        "ceiling": "of its speed alone, with all cores at work and nothing exchanged",
    }[given.what]
    print(f"{name}, {given.workers} ranks, {given.pairs} pairs")
    for kind, values in zip(("clock", "CPU"), zip(*figures, strict=True), strict=True):
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"  {kind:5} {middle:.3f} (quartiles {low:.3f} to {high:.3f})")
    if given.json:
        found = {"what": given.what, "workers": given.workers, "figures": figures, "torch": torch.__version__}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

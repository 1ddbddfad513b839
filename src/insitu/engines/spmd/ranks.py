"""The processes that run one run together: how they find each other, compare what they have, and exchange."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from insitu.core.errors import EngineError, InsituError
from insitu.engines.spmd import frames
from insitu.engines.spmd.watch import Watch, lines, never_came

SHOWN = 80
"""Characters of a value that an error shows."""


class Ranks:
    """All ranks, seen from one of them. Every rank calls the same methods in the same order.

    sent    bytes that this rank has sent to others in frames of ours, all in all (without TCP's own heads)
    clock   rank 0's, as of the last exchange: policies with deadlines then say the same everywhere
    """

    def __init__(self, rank: int, world: int, backend: str, timeout: float, watch: Watch | None) -> None:
        self.rank, self.world, self.backend, self.timeout = rank, world, backend, timeout
        self.sent = 0
        self._watch = watch
        self._now = time.monotonic()
        self._told = 0
        self.serving = False
        """Whether rank 0 runs the rounds alone, in real time: then nobody meets at the end of a round."""
        self.stop_wanted = False
        """Rank 0, serving: whether another rank has said that somebody wants the run to stop."""
        self._received = [0] * world

    def clock(self) -> float:
        """Seconds on rank 0's clock, as of the last exchange."""
        return self._now

    def launch(self) -> tuple[str, bool] | None:
        """What started these processes, and whether it may have done so before; None: nothing we know."""
        name = launch_id()
        again = "INSITU_LAUNCH" in os.environ or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        return None if name is None else (name, again)

    # ------------------------------------------------------------ exchanges

    def gather(self, value: Any, doing: str) -> list[Any]:
        """Every rank's tree, in the order of the ranks. Each passes on what it has to the next, world - 1 times."""
        told: Any = {"value": value, "clock": np.array(time.monotonic())}  # as text its length would vary
        found = {self.rank: told}
        with self._meeting(doing):
            for hop in range(self.world - 1):
                sending = frames.Sending(told, (self.rank + 1) % self.world)
                told, _ = frames.receive((self.rank - 1) % self.world)
                sending.wait()
                self.sent += sending.size
                found[(self.rank - 1 - hop) % self.world] = told
        self._now = float(found[0]["clock"])
        return [found[rank]["value"] for rank in range(self.world)]

    def first(self, value: Any, doing: str) -> Any:
        """Rank 0's tree, on every rank."""
        with self._meeting(doing):
            if self.rank:
                value, _ = frames.receive(self.rank - 1)
            if self.rank + 1 < self.world:
                self._send(value, self.rank + 1)
        return value

    def relay(self, start: Any, add: Callable[[Any], Any], doing: str) -> Any:
        """``start`` handed from rank to rank, each adding its own; what comes out at the end, on every rank.

        So the order of additions is that of the ranks, whatever their number: the same bits. A rank sends the sum once
        up and once down, as much as a ring's all-reduce sends (2 (world - 1) / world).
        """
        with self._meeting(doing):
            if self.rank:
                start, _ = frames.receive(self.rank - 1)
            total = add(start)
            if self.rank + 1 < self.world:
                self._send(total, self.rank + 1)
                total, _ = frames.receive(self.rank + 1)
            if self.rank:
                self._send(total, self.rank - 1)
        return total

    def post(self, letters: Mapping[tuple[int, int], Any], doing: str) -> dict[int, Any]:
        """Trees from rank to rank: ``letters`` by (from, to), keys that every rank knows. What came, by sender."""
        keys = sorted(key for key in letters if key[0] != key[1])
        found: dict[int, Any] = {}
        if not keys:
            return found
        with self._meeting(doing):
            sending = [frames.Sending(letters[key], key[1]) for key in keys if key[0] == self.rank]
            for sender, to in keys:
                if to == self.rank:
                    found[sender], _ = frames.receive(sender)
            for one in sending:
                one.wait()
                self.sent += one.size
        return found

    def settle(self, wanted: bool) -> tuple[bool, list[int]]:
        """Whether any rank wants to stop, and the bytes that each has sent since the last call (serving: to rank 0)."""
        if self.serving:
            sent = [self.sent - self._told, *self._received[1:]]
            self._told, self._received = self.sent, [0] * self.world
            return wanted or self.stop_wanted, sent
        since, self._told = self.sent - self._told, self.sent
        told = self.gather(np.array([wanted, since]), "closing the round")
        return any(int(one[0]) for one in told), [int(one[1]) for one in told]

    def agree(self, fields: Mapping[str, str]) -> None:
        """Raises EngineError on every rank, naming the first rank and field, where they were given different things."""
        told = self.gather(dict(fields), "comparing what the ranks were given")
        for rank, theirs in enumerate(told):
            for name in {**told[0], **theirs}:
                ours, other = told[0].get(name), theirs.get(name)
                if ours != other:
                    raise EngineError(
                        f"rank {rank} was given something else than rank 0: {name} is {_shown(other)} on rank {rank}"
                        f" and {_shown(ours)} on rank 0. Start every rank with the same plan, data and versions"
                    )

    # ------------------------------------------------------------ between rank 0 and one other

    def letter(self, doing: str) -> int:
        """Waits for the first rank that has something for this one. Raises EngineError where one is gone."""
        assert self._watch is not None
        return self._watch.letter(doing)

    def hand(self, value: Any, to: int, doing: str) -> None:
        """Rank 0: a tree to a rank that waits for one."""
        assert self._watch is not None
        self._watch.tell(to)
        with self._explaining(doing):
            self._send(value, to)

    def take(self, sender: int, doing: str) -> Any:
        """The tree of a rank whose letter has come."""
        assert self._watch is not None
        if self.rank == 0:
            self._watch.call(sender, True)
        with self._explaining(doing):
            value, size = frames.receive(sender)
        self._received[sender] += size
        return value

    def turn_down(self, sender: int) -> None:
        """Rank 0: what the rank has for it is not wanted any more."""
        assert self._watch is not None
        self._watch.call(sender, False)

    def report(self, value: Any, doing: str) -> None:
        """Other ranks: a tree to rank 0, when it takes it; however long it does something else before."""
        assert self._watch is not None
        self._watch.tell(0)
        if self._watch.called(doing):
            with self._explaining(doing):
                self._send(value, 0)

    def leave(self, why: str) -> None:
        """Tells the others that this rank ends, and why."""
        if self._watch:
            self._watch.leave(why)

    def _send(self, value: Any, to: int) -> None:
        sending = frames.Sending(value, to)
        sending.wait()
        self.sent += sending.size

    @contextmanager
    def _meeting(self, doing: str) -> Iterator[None]:
        """Begins when all ranks are there. What breaks inside is said with the rank that is missing."""
        if self._watch is None:
            yield
            return
        self.meet(doing)
        with self._explaining(doing):
            yield

    @contextmanager
    def _explaining(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.explained(error, doing) from error

    def meet(self, doing: str) -> None:
        """Returns when every rank has called it."""
        if self._watch:
            self._watch.meet(doing)

    def explained(self, error: RuntimeError, doing: str) -> RuntimeError:
        """What torch says when an exchange breaks, as an error that names the rank that is missing."""
        if isinstance(error, InsituError) or self._watch is None:
            return error
        until = time.monotonic() + min(2.0, self.timeout)
        while not self._watch.gone and time.monotonic() < until:
            time.sleep(0.01)
        if self._watch.gone:
            return EngineError(self._watch.missing(doing))
        return EngineError(f"{type(error).__name__} while {doing}: {error}")


_joined: Ranks | None = None


def join(backend: str | None, timeout: float) -> Ranks:
    """This process's ranks, which it joins on the first call; alone where nothing says that there are others.

    Raises EngineError where they cannot be had, saying who has not come.
    """
    global _joined
    if _joined is None:
        if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
            _joined = Ranks(0, 1, "none", timeout, None)
        else:
            _joined = _met(backend or usual_backend(), timeout)
            atexit.register(_leave)
    return _joined


def usual_backend() -> str:
    """NCCL where every local rank can have a GPU of its own, else gloo."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return "nccl" if dist.is_nccl_available() and torch.cuda.device_count() >= local else "gloo"


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def launch_id() -> str | None:
    """What started these processes: the same after a restart, another for another start."""
    if own := os.environ.get("INSITU_LAUNCH"):
        return own
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    if given is None:
        return None
    # Without --rdzv-id torchrun calls every run "none"; its process outlives the restarts of its workers.
    return given if given != "none" else f"{socket.gethostname()}-{os.getppid()}"


def _met(backend: str, timeout: float) -> Ranks:
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise EngineError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that there are other ranks, and {', '.join(missing)} is not"
            " set: start with torchrun or insitu launch, or unset WORLD_SIZE"
        )
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    wait = timedelta(seconds=timeout)
    given = dist.is_initialized()  # by Ray, or by the user's script: then theirs is used
    try:
        if given:
            store, rank, world = dist.distributed_c10d._get_default_store(), dist.get_rank(), dist.get_world_size()
        else:
            store = _store(rank, world, host, int(port), wait)
    except (RuntimeError, ValueError) as error:  # DistNetworkError, DistStoreError
        raise EngineError(_no_store(rank, host, port, timeout, error)) from error
    token, at = "insitu/token", "insitu/port"
    store = PrefixStore("insitu", store)
    try:
        if rank == 0:
            store.set(token, secrets.token_hex(16))
        found = lines(
            rank, world, host, lambda port: store.set(at, port), lambda: store.get(at).decode(),
            store.get(token).decode(), timeout,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(never_came([0], world, timeout)) from error
    watch = Watch(rank, world, found, timeout)
    watch.meet("starting")
    if given:
        return Ranks(rank, world, dist.get_backend(), timeout, watch)
    kind = "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    try:
        dist.init_process_group(kind, store=PrefixStore("group", store), rank=rank, world_size=world, timeout=wait)
    except RuntimeError as error:
        said = watch.missing("connecting") if watch.gone else f"the ranks cannot connect to each other: {error}"
        raise EngineError(said) from error
    return Ranks(rank, world, backend, timeout, watch)


def _store(rank: int, world: int, host: str, port: int, wait: timedelta) -> Store:
    """Where ranks leave notes for each other: rank 0's, or that of torchrun, which outlives restarts."""
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # Waiting for the others is left to the watch, which can tell who does not come.
    store = TCPStore(host, port, world, rank == 0 and not agents, wait, wait_for_workers=False)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"/worker/attempt_{attempt}", store) if agents else store


def _no_store(rank: int, host: str, port: str, timeout: float, error: Exception) -> str:
    text = str(error)
    if "EADDRINUSE" in text or "already in use" in text:
        return f"port {port} of {host} is in use by another program: choose another (insitu launch --port, MASTER_PORT)"
    if rank == 0:
        return f"rank 0 cannot listen on {host}:{port}: {text.splitlines()[0][:300]}"
    return f"rank 0 is missing: it did not answer at {host}:{port} within {timeout:g} s (timeout={timeout:g})"


def _leave() -> None:
    if _joined is not None:
        _joined.leave("")
    if dist.is_initialized():
        dist.destroy_process_group()


def _shown(value: str | None) -> str:
    if value is None:
        return "missing"
    return value if len(value) <= SHOWN else f"{value[:SHOWN]}…"

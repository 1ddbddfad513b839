"""CPU and memory of a process's tree, against work and memory of a known size."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from insitu.bench import processes

pytestmark = pytest.mark.skipif(not processes.PROC.is_dir(), reason="needs /proc")

# A parent and its child each use some CPU and hold 40 MB, say so, and wait.
PROGRAM = """
import subprocess, sys, time
held = bytearray(b"x" * 40_000_000)
child = None
if len(sys.argv) == 1:
    child = subprocess.Popen([sys.executable, "-c", sys.stdin.readline().encode().decode("unicode_escape"), "child"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
print("ready", flush=True)
sys.stdin.read()
if child:
    child.stdin.close()
    child.wait()
"""


def test_a_tree_is_counted_whole():
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdin.write(PROGRAM.encode("unicode_escape") + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        assert len(processes.tree_of(process.pid)) == 2
        assert process.pid in processes.tree_of(os.getpid())
        assert processes.cpu_seconds(process.pid) >= 0.58  # twice 0.3, in ticks of 10 ms
        assert processes.pss_bytes(process.pid) >= 80_000_000
        with processes.PeakMemory(process.pid, every=0.01) as memory:
            pass
        assert memory.peak >= 80_000_000
    finally:
        process.communicate(timeout=20)


def test_what_has_ended_costs_nothing():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert processes.tree_of(process.pid) == [process.pid]
    assert processes.cpu_seconds(process.pid) == 0
    assert processes.pss_bytes(process.pid) == 0

"""However many threads allocate in a coordinator, they share a few heaps."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

HEAPS = """
import ctypes, sys, threading
from insitu.engines.https.serve import arenas
if sys.argv[2] == "few":
    arenas.few()
libc, together = ctypes.CDLL(None), threading.Barrier(8)
libc.malloc.restype = ctypes.c_void_p
def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
file = libc.fopen(sys.argv[1].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no arenas")
def test_threads_share_a_few_heaps(tmp_path):
    counted = {}
    for how in ("few", "all"):
        file = tmp_path / how
        subprocess.run([sys.executable, "-c", HEAPS, str(file), how], check=True, timeout=60)
        counted[how] = file.read_text().count("<heap nr=")
    assert counted["few"] <= 2 < counted["all"]

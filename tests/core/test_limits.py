"""How much memory a process may have: the least that any control group above it allows, of either version."""

import os

import pytest

from insitu.core import limits

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "GROUPS", tmp_path)
    monkeypatch.setattr(limits, "OWN", tmp_path / "own")

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def test_without_control_groups_it_is_the_machines(groups):
    assert limits.allowed_memory() == MACHINE


@pytest.mark.parametrize(
    ("own", "path"),
    [
        ("0::/\n", "memory.max"),
        ("0::/a/b\n", "memory.max"),
        ("0::/a/b\n", "a/memory.max"),
        ("0::/a/b\n", "a/b/memory.max"),
        ("5:cpu:/x\n4:memory:/a/b\n0::/\n", "memory/memory.limit_in_bytes"),
        ("5:cpu:/x\n4:memory:/a/b\n0::/\n", "memory/a/b/memory.limit_in_bytes"),
        ("4:hugetlb,memory:/a\n", "memory/a/memory.limit_in_bytes"),
    ],
)
def test_a_limit_here_or_above(groups, own, path):
    groups("own", own)
    groups("memory.max", "max\n")
    groups(path, "1000000\n")
    assert limits.allowed_memory() == 1_000_000


def test_limits_of_other_groups_do_not_count(groups):
    groups("own", "5:cpu:/x\n4:memory:/a\n")
    groups("memory/x/memory.limit_in_bytes", "1000")
    groups("memory/a/b/memory.limit_in_bytes", "1000")
    groups("memory/a/memory.limit_in_bytes", str(2**63 - 4096))
    assert limits.allowed_memory() == MACHINE

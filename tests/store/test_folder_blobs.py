"""Blobs in a folder on disks that tear, fill up or belong to a process that is killed: whole, or not there."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torn_disk import TornDisk

from insitu.core.errors import BlobError, DiskFull, StoreError
from insitu.store.blobs.files import RealFiles
from insitu.store.blobs.folder import FolderBlobs

ROOT = "/blobs"


def digest_of(data):
    return hashlib.sha256(data).hexdigest()


def whole(blobs, datas):
    """Every blob that is seen is all there, and nothing else is seen."""
    for data in datas:
        if blobs.length(digest_of(data)) is not None:
            assert blobs.read(digest_of(data)) == data


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 400)),
        st.tuples(st.sampled_from(["suspend", "crash", "die", "finish", "put"]), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.binary(min_size=1, max_size=1500), steps=STEPS)
def test_whatever_the_disk_does_to_what_was_not_synced(seed, data, steps):
    disk, digest, other = TornDisk(seed), digest_of(data), b"other" + data
    blobs, synced, durable = FolderBlobs(ROOT, files=disk), 0, set()
    part = blobs.part("north", digest, len(data))
    for step, size in steps:
        if step == "write":
            part.write(data[part.offset : part.offset + size])
            continue
        if step == "put":
            durable.add(blobs.put(other))
        elif step == "suspend":
            part.suspend()
            synced = part.offset
        elif step == "finish" and part.offset == len(data):
            part.finish()
            blobs.sync()
            durable.add(digest)
            synced = 0
        elif step in ("crash", "die"):
            if step == "crash":
                disk.crash()
            blobs = FolderBlobs(ROOT, files=disk)
        else:
            continue
        whole(blobs, [data, other])
        assert {digest_of(one) for one in (data, other) if blobs.length(digest_of(one)) is not None} >= durable
        if step != "put":
            assert blobs.arrived("north", digest) == synced
            part = blobs.part("north", digest, len(data))
            assert part.offset == synced
    part.write(data[part.offset :])
    part.finish()
    blobs.sync()
    disk.crash()
    assert FolderBlobs(ROOT, files=disk).read(digest) == data


def test_what_is_not_synced_may_be_gone_but_is_never_half_there():
    """The disk of these tests does lose things: else they would prove nothing."""
    data, seen = b"x" * 1000, set()
    for seed in range(40):
        disk = TornDisk(seed)
        blobs = FolderBlobs(ROOT, files=disk)
        part = blobs.part("north", digest_of(data), len(data))
        part.write(data)
        part.finish()
        disk.crash()
        again = FolderBlobs(ROOT, files=disk)
        whole(again, [data])
        seen.add((again.length(digest_of(data)), again.arrived("north", digest_of(data))))
    assert seen == {(None, 0), (1000, 0)}


def test_what_another_process_has_finished_is_durable_by_ones_own_sync():
    """Two processes have the same folder: one takes the chunks, the other one answers for them."""
    data, lost = b"x" * 1000, 0
    for told in (True, False):
        for seed in range(40):
            disk = TornDisk(seed)
            main, worker = FolderBlobs(ROOT, files=disk), FolderBlobs(ROOT, files=disk)
            part = worker.part("north", digest_of(data), len(data))
            part.write(data)
            part.finish()
            if told:
                main.shown(digest_of(data))
            main.sync()
            disk.crash()
            there = FolderBlobs(ROOT, files=disk).length(digest_of(data))
            assert there == 1000 or not told
            lost += there is None
    assert lost  # without being told it syncs nothing


def test_many_finished_blobs_of_a_folder_are_made_durable_by_one_sync():
    datas = [data for i in range(3000) if digest_of(data := str(i).encode())[0:2] in ("00", "01")]
    assert len(datas) > 10
    disk = TornDisk(0)
    blobs = FolderBlobs(ROOT, files=disk)
    for data in datas:
        part = blobs.part("north", digest_of(data), len(data))
        part.write(data)
        part.finish()
    before = disk.syncs
    blobs.sync()
    assert disk.syncs == before + 2
    blobs.sync()
    assert disk.syncs == before + 2
    disk.crash()
    assert all(FolderBlobs(ROOT, files=disk).read(digest_of(data)) == data for data in datas)


# ------------------------------------------------------------ no room


def test_a_full_disk_is_told_apart_and_a_part_goes_on_when_there_is_room():
    data = bytes(range(250)) * 10
    disk = TornDisk(0, room=1000)
    blobs = FolderBlobs(ROOT, files=disk)
    with pytest.raises(DiskFull, match="free some space"):
        blobs.put(data)
    assert blobs.length(digest_of(data)) is None
    assert disk.list(blobs.root / "new") == []
    part = blobs.part("north", digest_of(data), len(data))
    part.write(data[:900])
    for _ in range(2):
        with pytest.raises(DiskFull):
            part.write(data[900:1200])
        assert part.offset == 900
    disk.room = 10**9
    part.write(data[900:1200])
    disk.room = 1500
    with pytest.raises(DiskFull):
        part.write(data[1200:])
    part.suspend()
    disk.crash()
    disk.room = 10**9
    again = FolderBlobs(ROOT, files=disk)
    part = again.part("north", digest_of(data), len(data))
    assert part.offset == 1200
    part.write(data[1200:])
    part.finish()
    assert again.read(digest_of(data)) == data


class Failing(RealFiles):
    """The real disk, on which the ``at``-th call of those that change something fails."""

    def __init__(self, at):
        self.left = at

    def _count(self):
        self.left -= 1
        if self.left == 0:
            raise OSError(5, "Input/output error")

    def write(self, handle, data):
        self._count()
        super().write(handle, data)

    def fsync(self, handle):
        self._count()
        super().fsync(handle)

    def rename(self, old, new):
        self._count()
        super().rename(old, new)

    def sync_folder(self, folder):
        self._count()
        super().sync_folder(folder)


def test_whichever_call_fails_the_same_again_succeeds(tmp_path):
    data = b"abc" * 100
    FolderBlobs(tmp_path)
    for at in range(4, 30):
        blobs = FolderBlobs(tmp_path, files=Failing(at))
        told = []
        for _ in range(2):
            part = blobs.part("north", digest_of(data), len(data))
            try:
                part.write(data[part.offset : 200])
                part.suspend()
                part = blobs.part("north", digest_of(data), len(data))
                part.write(data[part.offset :])
                part.finish()
                blobs.sync()
                blobs.put(b"other")
                break
            except StoreError as error:
                told.append(str(error))
                part.suspend() if part.offset else part.abandon()
        assert len(told) <= 1
        assert all("Input/output error: check the folder" in message for message in told)
        assert blobs.read(digest_of(data)) == data
        assert blobs.read(digest_of(b"other")) == b"other"
        blobs.remove([digest_of(data), digest_of(b"other")])
    assert os.listdir(tmp_path / "new") == []


def test_a_file_size_limit_of_the_system_is_a_full_disk(tmp_path):
    program = (
        "import resource, signal, sys\n"
        "from insitu.core.errors import DiskFull\n"
        "from insitu.store.blobs.folder import FolderBlobs\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "blobs = FolderBlobs(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    blobs.put(bytes(5000))\n"
        "except DiskFull:\n"
        "    print('full')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "full\n"), done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# ------------------------------------------------------------ killed


KILLED = """
import os, signal, sys
from insitu.core import failpoints
from insitu.store.blobs.folder import FolderBlobs

root, name, how = sys.argv[1:]
data = b"abc" * 1000
digest = __import__("hashlib").sha256(data).hexdigest()
blobs = FolderBlobs(root)
failpoints.hit = lambda at: at == name and os.kill(os.getpid(), signal.SIGKILL)
if how == "put":
    blobs.put(data)
else:
    part = blobs.part("north", digest, len(data))
    part.write(data[part.offset:])
    part.finish()
    blobs.sync()
"""


FAILPOINTS = ("blob.fsync.before", "blob.fsync.after", "blob.rename.before", "blob.rename.after", "blob.folder.after")


@pytest.mark.parametrize("how", ["put", "part"])
def test_kill_9_at_every_failpoint_leaves_it_whole_or_not_there(tmp_path, how):
    data = b"abc" * 1000
    for name in FAILPOINTS:
        root = tmp_path / name
        done = subprocess.run([sys.executable, "-c", KILLED, str(root), name, how])
        assert done.returncode == -signal.SIGKILL, name
        blobs = FolderBlobs(root)
        assert (blobs.length(digest_of(data)) is not None) == (name in ("blob.rename.after", "blob.folder.after")), name
        whole(blobs, [data])
        done = subprocess.run([sys.executable, "-c", KILLED, str(root), "", how])
        assert done.returncode == 0
        assert blobs.read(digest_of(data)) == data
        blobs.sweep([digest_of(data)], 0.0)
        assert [path.name for path in root.rglob("*") if path.is_file()] == [digest_of(data)]


# ------------------------------------------------------------ what is on the disk


def test_a_damaged_blob_is_noticed(tmp_path):
    blobs = FolderBlobs(tmp_path)
    digest = blobs.put(b"a" * 100)
    (tmp_path / "blobs" / digest[:2] / digest).write_bytes(b"a" * 99 + b"b")
    with pytest.raises(BlobError, match="is damaged"):
        blobs.read(digest)


def test_a_part_whose_file_is_a_link_elsewhere_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    blobs = FolderBlobs(tmp_path / "blobs")
    digest = digest_of(b"x")
    part = blobs.part("north", digest, 1)
    part.write(b"x")
    part.suspend()
    (file,) = [path for path in (tmp_path / "blobs" / "parts").rglob("*") if path.is_file()]
    file.unlink()
    file.symlink_to(target)
    with pytest.raises(StoreError):
        blobs.part("north", digest, 10)
    assert target.read_bytes() == b"precious"


def test_only_the_owner_may_read_the_files(tmp_path):
    before = os.umask(0)
    try:
        blobs = FolderBlobs(tmp_path / "blobs")
        digest = blobs.put(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "blobs" / "blobs" / digest[:2] / digest).stat().st_mode & 0o077 == 0
    assert (tmp_path / "blobs" / "parts").stat().st_mode & 0o077 == 0


def test_parts_do_not_keep_files_open_after_their_end(tmp_path):
    blobs = FolderBlobs(tmp_path)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = len(os.listdir("/proc/self/fd"))
    for i in range(50):
        part = blobs.part(f"site-{i}", digest_of(b"abc"), 3)
        part.write(b"ab")
        (part.suspend if i % 2 else part.abandon)()
        if i % 2:
            part = blobs.part(f"site-{i}", digest_of(b"abc"), 3)
            part.write(b"c")
            part.finish()
    assert len(os.listdir("/proc/self/fd")) == count < soft


def test_whoever_syncs_waits_for_a_sync_that_is_under_way(tmp_path):
    """A folder that is being synced is not durable yet, whoever began with it."""

    class Slow(RealFiles):
        begun, go_on = threading.Event(), threading.Event()
        slow = False

        def sync_folder(self, folder):
            if self.slow:
                self.begun.set()
                assert self.go_on.wait(30)
            super().sync_folder(folder)

    blobs = FolderBlobs(tmp_path / "blobs", files=(files := Slow()))
    data = b"a chunk"
    part = blobs.part("berlin", hashlib.sha256(data).hexdigest(), len(data))
    part.write(data)
    part.finish()
    files.slow = True
    first = threading.Thread(target=blobs.sync)
    first.start()
    assert files.begun.wait(30)
    second = threading.Thread(target=blobs.sync)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    files.go_on.set()
    first.join(30)
    second.join(30)
    assert not second.is_alive()

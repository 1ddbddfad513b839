"""A site behind a network that is taken away or slow, and a coordinator whose disk is full: as root, in namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest
from copies import ADDRESS
from processes import ENV, SITES, command

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"),
        reason="network namespaces need root, ip and tc",
    ),
]
SPACE, OURS, THEIRS = "insitu-site", "insitu-veth0", "insitu-veth1"


def call(*args: str) -> None:
    subprocess.run(args, check=True, capture_output=True)


@pytest.fixture
def link():
    """A network with the coordinator's address and one site's, whose end is called ``OURS``."""
    subprocess.run(["ip", "netns", "del", SPACE], check=False, capture_output=True)
    try:
        call("ip", "netns", "add", SPACE)
        call("ip", "link", "add", OURS, "type", "veth", "peer", "name", THEIRS, "netns", SPACE)
        call("ip", "addr", "add", f"{ADDRESS}/30", "dev", OURS)
        call("ip", "link", "set", OURS, "up")
        call("ip", "-n", SPACE, "addr", "add", "10.77.0.2/30", "dev", THEIRS)
        call("ip", "-n", SPACE, "link", "set", THEIRS, "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield OURS
    subprocess.run(["ip", "netns", "del", SPACE], check=False, capture_output=True)


def far_site(federation, name: str) -> None:
    """The site runs in the other namespace, and knows the coordinator by its address there."""
    identity = federation.folder / name / "identity.toml"
    lines = [line for line in identity.read_text().splitlines() if not line.startswith("urls")]
    identity.write_text("\n".join([*lines, f'urls = ["https://{ADDRESS}:{federation.port}"]', ""]))
    with (federation.folder / f"{name}.log").open("ab") as log:
        federation.running[name] = subprocess.Popen(
            ["ip", "netns", "exec", SPACE, *command("site", "run", name)], cwd=federation.folder, env=ENV, stdout=log,
            stderr=log,
        )  # fmt: skip


def test_a_site_whose_link_is_down_comes_back(federation, link):
    federation.coordinator()
    far_site(federation, "berlin")
    federation.site("paris")
    federation.until(lambda: "berlin" in told(federation), "berlin is connected")
    call("ip", "link", "set", link, "down")
    run = federation.submit()
    time.sleep(5)
    assert federation.status(run) == "running"
    call("ip", "link", "set", link, "up")
    federation.finishes(run, 120)


def test_a_site_at_a_kilobyte_per_second(federation, link):
    far_site(federation, "berlin")
    federation.coordinator()
    federation.site("paris")
    federation.until(lambda: "berlin" in told(federation), "berlin is connected", 90)
    for place in (["tc"], ["tc", "-n", SPACE]):
        device = link if place == ["tc"] else THEIRS
        call(*place, "qdisc", "add", "dev", device, "root", "tbf", "rate", "8kbit", "burst", "1600", "limit", "30000")
    run = federation.submit()
    federation.finishes(run, 300)


def test_a_disk_that_is_full_for_a_while(federation, made, tmp_path):
    """The coordinator's folder is on a disk of its own, which somebody else fills."""
    place = tmp_path / "disk"
    place.mkdir()
    call("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place))
    try:
        shutil.copytree(federation.folder / "study", place / "study")
        shutil.rmtree(federation.folder / "study")
        (federation.folder / "study").symlink_to(place / "study")
        federation.coordinator()
        for site in SITES:
            federation.site(site)
        federation.until(lambda: all(site in told(federation) for site in SITES), "both are connected")
        run = federation.submit()
        filler = place / "filler"
        try:
            with filler.open("wb") as file:
                while file.write(bytes(4096)):
                    file.flush()
        except OSError:
            time.sleep(3)
        filler.unlink()
        federation.finishes(run, 120)
    finally:
        for process in federation.running.values():
            process.kill()
            process.wait()
        federation.running.clear()
        call("umount", "-l", str(place))


def told(federation) -> str:
    """The sites that the coordinator has heard, as ``insitu status`` shows them."""
    shown = federation.call("status", "--federation", "study")
    return "\n".join(line for line in shown.splitlines() if "heard" in line)

"""A site's process: joined once, one at a time in its folder, ends when it is told to, whatever it is doing."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from types import SimpleNamespace

import pytest
from processes import Federation

from insitu.core.errors import ConfigError, TokenError
from insitu.engines.https.authority import Authority, certificates, keys, request_for
from insitu.federation import site as sites

SLOW = """
import time
from pathlib import Path

from insitu.learners.numpy import LogisticLearner


class Slow(LogisticLearner):
    def gradient(self, *args, **named):
        Path("training").touch()
        time.sleep(120)
"""


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path, rounds=2)
    yield made
    made.close()


def test_a_site_from_joining_to_leaving(federation):
    federation.coordinator()
    federation.join(0, "berlin")
    folder = federation.folder / "berlin"
    for name in ("key.pem", "identity.toml", "audit.jsonl"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    told = sites.status(folder)
    assert (told["name"], told["alive"]) == ("berlin", False)
    federation.site("berlin")
    federation.until(lambda: sites.status(folder).get("doing") == "waiting", "it is at work")
    assert sites.status(folder)["alive"]
    with pytest.raises(ConfigError, match="at work already"):
        sites.run(folder, print)
    assert [entry["what"] for entry in sites.audit(folder)] == ["joined", "declared"]
    with pytest.raises(ConfigError, match="is the site 'berlin' already"):
        sites.join(None, "insitu1.x", federation.folder / "berlin.toml", folder)
    assert federation.kill("berlin", signal.SIGTERM) == 0
    told = sites.status(folder)
    assert (told["alive"], told["doing"]) == (False, "stopped")
    assert sites.verify(folder) is None


def test_a_clock_that_is_far_ahead_does_not_make_it_renew_again_and_again(tmp_path):
    """By that clock the new certificate ends as soon as the old one."""
    authority = Authority.make(tmp_path / "authority", "t", ["localhost"], clock=lambda: time.time() - 390 * 86400)
    key = keys.new_key()
    (tmp_path / "key.pem").write_bytes(keys.private_text(key))
    (tmp_path / "key.pem").chmod(0o600)
    asked = []

    class Agent:
        doing = SimpleNamespace(phase="waiting")

        async def renew(self, request):
            asked.append(request)
            made = authority.sign(request, "berlin", "site")
            return {"certificate": certificates.pem(made).decode(), "authority": authority.bundle_text()}

    site = sites.SiteProcess.__new__(sites.SiteProcess)
    site._folder, site._identity, site._renewed = tmp_path, {"name": "berlin"}, -sites.RENEW_AGAIN
    site._trail = SimpleNamespace(note=lambda what, data: None)
    first = authority.sign(request_for(key, "berlin"), "berlin", "site")
    (tmp_path / "certificate.pem").write_bytes(certificates.pem(first))

    async def twice():
        await asyncio.wait_for(site._renewal(Agent()), 10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(site._renewal(Agent()), 0.3)

    asyncio.run(twice())
    assert len(asked) == 1


def test_joining_goes_on_where_it_was_cut_short(federation):
    """The token is used up and the certificate here, but not who the site is."""
    federation.coordinator()
    token = federation.call("federation", "invite", "paris", "--federation", "study").strip()
    (federation.folder / "paris.toml").write_text('[data]\nsource = { name = "data.py:load", part = 1 }\n')
    data, folder = federation.folder / "paris.toml", federation.folder / "paris"
    assert sites.join(None, token, data, folder) == "paris"
    identity = (folder / "identity.toml").read_text()
    (folder / "identity.toml").unlink()
    assert sites.join(None, token, data, folder) == "paris"
    assert (folder / "identity.toml").read_text() == identity
    viewer = federation.call("federation", "invite", "anna", "--role", "viewer", "--federation", "study").strip()
    with pytest.raises(ConfigError, match="for a viewer, not a site"):
        sites.join(None, viewer, data, federation.folder / "anna")
    assert not (federation.folder / "anna").exists()  # and the token is as good as it was
    with pytest.raises(TokenError):
        sites.join(None, "nonsense", data, federation.folder / "other")


def test_a_site_that_trains_ends_at_once_and_begins_anew(federation):
    (federation.folder / "study" / "code").mkdir(exist_ok=True)
    for place in (federation.folder, federation.folder / "study" / "code"):
        (place / "slow.py").write_text(SLOW)
    plan = federation.folder / "plan.toml"
    plan.write_text(plan.read_text().replace('name = "logistic"', 'name = "slow.py:Slow"'))
    federation.coordinator()
    for part, name in enumerate(("berlin", "paris")):
        federation.join(part, name)
        with (federation.folder / f"{name}.toml").open("a") as file:
            file.write('[allow]\ncode = ["slow.py:*"]\n')
        federation.site(name)
    federation.call("submit", "plan.toml", "--federation", "study")
    federation.until(lambda: (federation.folder / "training").exists(), "they train")
    folder = federation.folder / "berlin"
    federation.until(lambda: sites.status(folder).get("doing") == "training", "it says so")
    began = time.monotonic()
    assert federation.kill("berlin", signal.SIGTERM) == 0
    assert time.monotonic() - began < 10
    asked = [entry["data"]["task"] for entry in sites.audit(folder) if entry["what"] == "asked"]
    federation.site("berlin")
    federation.until(lambda: sum(e["what"] == "asked" for e in sites.audit(folder)) == 2, "it is asked again")
    again = [entry["data"]["task"] for entry in sites.audit(folder) if entry["what"] == "asked"]
    assert again == asked * 2
    assert json.loads((folder / "status.json").read_text())["said"]

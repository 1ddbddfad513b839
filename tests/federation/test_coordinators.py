"""Two coordinators of one federation: one leads, the other takes over when it dies, and the sites go there."""

from __future__ import annotations

import signal
import time

import pytest
from processes import SITES, Federation, free_port


@pytest.fixture(params=["sqlite", "postgres"])
def federation(tmp_path, request):
    made = Federation(tmp_path, rounds=60)
    if request.param == "postgres":
        settings = tmp_path / "study" / "federation.toml"
        url = request.getfixturevalue("postgres").fresh()
        settings.write_text(settings.read_text().replace('url = "federation.db"', f'url = "{url}"'))
    yield made
    made.close()


def second_folder(federation):
    """Another coordinator's folder: the same keys, store and tensors, another port. Both know both addresses."""
    study, port = federation.folder / "study", free_port()
    text = (study / "federation.toml").read_text()
    addresses = f'addresses = ["https://localhost:{federation.port}", "https://localhost:{port}"]\n'
    text = addresses + text.replace('url = "federation.db"', f'url = "{study / "federation.db"}"').replace(
        'url = "blobs"', f'url = "{study / "blobs"}"'
    )
    (study / "federation.toml").write_text(text)
    other = federation.folder / "other"
    other.mkdir()
    for name in ("authority", "operator", "code"):
        (other / name).symlink_to(study / name)
    (other / "federation.toml").write_text(text.replace(f"port = {federation.port}", f"port = {port}"))
    operator = study / "operator" / "operator.toml"
    operator.write_text(
        f'name = "operator"\nurls = ["https://localhost:{federation.port}", "https://localhost:{port}"]\n'
    )
    return other


@pytest.mark.long
def test_the_standby_takes_over(federation):
    other = second_folder(federation)
    federation.coordinator()
    federation.start("standby", "coordinator", other)
    federation.until(lambda: "coordinator started" in (federation.folder / "standby.log").read_text(), "it stands by")
    token = federation.call("federation", "invite", "anna", "--role", "viewer", "--federation", "study").strip()
    federation.call("federation", "join", "anna", "--token", token)
    told = federation.folder / "anna" / "operator.toml"
    told.write_text(f'name = "anna"\nurls = ["https://localhost:{other_port(other)}"]\n')  # the standby alone
    refused = federation.try_call("runs", "--federation", "anna")
    assert "another coordinator leads" in refused.stderr  # and not that nobody knows her
    for part, name in enumerate(SITES):
        federation.join(part, name)
        (federation.folder / name / "identity.toml").write_text(
            (federation.folder / name / "identity.toml")
            .read_text()
            .replace(f'["https://localhost:{federation.port}"]', str(operator_urls(federation)).replace("'", '"'))
        )
        federation.site(name)
    run = federation.call("submit", "plan.toml", "--federation", "study").strip()
    with federation.operator() as operator:
        federation.until(lambda: operator.run(run)["committed"] >= 2, "two rounds")
        federation.kill("coordinator")
        killed = time.monotonic()
        federation.until(lambda: leader(operator).endswith(other_port(other)), "the standby leads", 15)
        assert time.monotonic() - killed < 10
        federation.until(lambda: operator.run(run)["status"] == "finished", "the end", 60)
        assert [e["event"] for e in operator.events(run, 0, 0.0)[0]].count("RoundCommitted") == 60
    assert federation.kill("standby", signal.SIGTERM) == 0


def leader(operator):
    try:
        return operator.get("/v1/status")["leader"] or ""
    except Exception:
        return ""


def other_port(folder):
    text = (folder / "federation.toml").read_text()
    return text.partition("\nport = ")[2].partition("\n")[0]


def operator_urls(federation):
    from insitu.config import toml

    return toml.read(federation.folder / "study" / "operator" / "operator.toml")["urls"]


@pytest.mark.long
def test_a_leader_that_slept_ends_with_a_status_of_its_own(federation):
    other = second_folder(federation)
    federation.coordinator()
    federation.start("standby", "coordinator", other)
    asleep = federation.running["coordinator"]
    asleep.send_signal(signal.SIGSTOP)
    try:
        with federation.operator() as operator:
            operator.urls.reverse()  # the sleeping one would have to be waited for
            operator._transport.urls.reverse()
            federation.until(lambda: leader(operator).endswith(other_port(other)), "the standby leads", 20)
    finally:
        asleep.send_signal(signal.SIGCONT)
    assert asleep.wait(20) == 3
    del federation.running["coordinator"]

"""Commands for federations, as far as they go without a coordinator; tests/federation starts real ones."""

from __future__ import annotations

import json
import re
import stat

import pytest
from cli_calls import call, done

from insitu.cli.federation.screen import Watch, said
from insitu.engines.https.authority import Authority, Token
from insitu.federation import founding, tables
from insitu.federation.settings import load

PLAN = """
[run]
rounds = 4
engine = "inline"
store = "runs/x.db"

[data]
source = "digits"

[algorithm]
name = "fedavg"
lr = 0.1

[learner]
name = "logistic"
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INSITU_FEDERATION", raising=False)
    done("federation", "init", "study", "--port", 1, "--host", "localhost")  # nobody listens at port 1
    return tmp_path / "study"


def test_init_makes_a_folder_that_only_its_owner_can_read(study):
    assert load(study).urls() == ["https://localhost:1"]
    assert Authority.load(study / "authority").hosts() == ["localhost"]
    for path in [study, study / "authority", study / "operator"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for key in study.rglob("*key*"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert (study / "code" / "README").is_file()


def test_init_leaves_a_folder_alone_that_is_not_empty(study):
    before = sorted(study.rglob("*"))
    result = call("federation", "init", "study")
    assert (result.exit_code, sorted(study.rglob("*"))) == (2, before)
    assert "study is not empty: give the name of a new folder" in result.stderr


@pytest.mark.parametrize(("folder", "name"), [("My Study", "my-study"), ("a_b.c", "a_b.c"), ("--x--", "x")])
def test_a_federation_is_named_as_its_folder(tmp_path, folder, name):
    assert founding.named(tmp_path / folder) == name


def test_a_host_that_is_none_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("federation", "init", "study", "--host", "https://x")
    assert result.exit_code == 2
    assert "no host name or IP address" in result.stderr
    assert not (tmp_path / "study").exists()


def test_house_keeping_in_the_folder_while_no_coordinator_runs(study):
    token = Token.parse(done("federation", "invite", "berlin", "--federation", "study"))
    assert (token.name, token.role, token.urls) == ("berlin", "site", ("https://localhost:1",))
    assert token.fingerprint == Authority.load(study / "authority").fingerprint
    anna = Token.parse(done("federation", "invite", "anna", "--role", "viewer", "--federation", "study"))
    assert anna.role == "viewer"
    (member,) = json.loads(done("federation", "members", "--json", "--federation", "study"))
    assert (member["name"], member["role"], member["revoked"]) == ("operator", "operator", None)
    assert re.search(
        r"^operator +operator +2\d\d\d-", done("federation", "members", "--federation", "study"), re.MULTILINE
    )
    log = done("federation", "audit", "--federation", "study").splitlines()
    assert [line.split("  ")[3] for line in map(str.strip, log)] == ["found", "invite", "invite"]
    assert "3 entries, none changed" in done("federation", "audit", "--verify", "--federation", "study")
    for args, why in [
        (["invite", "Berlin!"], "is no name"),
        (["invite", "x", "--role", "king"], "is no role"),
        (["invite", "x", "--days", "100"], "a minute to 30 days"),
        (["invite", "operator"], "'operator' is enrolled already"),
        (["revoke", "nobody"], "there is no member 'nobody' that could be revoked"),
    ]:
        result = call("federation", *args, "--federation", "study")
        assert result.exit_code == 2
        assert why in result.stderr


def test_a_changed_audit_log_is_found_out(study):
    import sqlite3

    done("federation", "invite", "berlin", "--federation", "study")
    with sqlite3.connect(study / "federation.db") as database:
        changed = database.execute("UPDATE audit SET data = replace(data, 'berlin', 'bergen') WHERE what = 'invite'")
        assert changed.rowcount == 1
    database.close()
    result = call("federation", "audit", "--verify", "--federation", "study")
    assert result.exit_code == 2
    assert "the audit log was changed: entry 2 was changed" in result.stderr


def test_certificates_are_renewed_and_the_authority_replaced(study):
    before = Authority.load(study / "authority")
    own = (study / "operator" / "certificate.pem").read_bytes()
    assert "is for localhost, other.example.org, until 20" in done(
        "federation", "renew", "study", "--host", "localhost", "--host", "other.example.org"
    )
    assert Authority.load(study / "authority").hosts() == ["localhost", "other.example.org"]
    assert (study / "operator" / "certificate.pem").read_bytes() != own
    mark = before.mark
    assert "two authorities are trusted now" in done("federation", "rotate-ca", "study")
    assert len(before.trusted()) == 2
    assert "retire the old one" in call("federation", "rotate-ca", "study").stderr
    done("federation", "rotate-ca", "study", "--finish")
    assert len(before.trusted()) == 1
    assert before.mark != mark
    assert (study / "operator" / "authority.pem").read_text() == before.bundle_text()


@pytest.mark.parametrize(
    "args", [["status"], ["watch"], ["stop"], ["pause"], ["resume"], ["model"], ["runs"], ["submit", "plan.toml"]]
)
def test_a_coordinator_that_is_away_is_said_to_be(study, args, monkeypatch):
    monkeypatch.setattr("insitu.federation.operator.STARTING", 0.0)
    (study.parent / "plan.toml").write_text(PLAN)
    result = call(*args, "--federation", "study")
    assert result.exit_code == 2
    assert "the coordinator cannot be reached at https://localhost:1" in result.stderr
    assert "is `insitu coordinator` running?" in result.stderr


def test_commands_say_where_they_look(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INSITU_FEDERATION", raising=False)
    assert "the current directory is no folder of a federation" in call("status").stderr
    assert "there is no folder nowhere" in call("status", "--federation", "nowhere").stderr
    monkeypatch.setenv("INSITU_FEDERATION", "elsewhere")
    assert "there is no folder elsewhere" in call("status").stderr


def test_what_others_decide_is_left_out_of_a_plan_with_a_word(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    told, notices = tables.read(tmp_path / "plan.toml", ["run.rounds=7"])
    assert told == {
        "run": {"rounds": 7}, "algorithm": {"name": "fedavg", "lr": 0.1}, "learner": {"name": "logistic"},
    }  # fmt: skip
    assert [notice.split(":")[0] for notice in notices] == [
        f"{key} of plan.toml is left out" for key in ("data", "run.engine", "run.store")
    ]


def test_a_plan_with_a_wrong_key_is_not_sent(study):
    (study.parent / "plan.toml").write_text(PLAN.replace("rounds", "round"))
    result = call("submit", "plan.toml", "--federation", "study")
    assert (result.exit_code, "did you mean 'rounds'" in result.stderr) == (2, True)


def test_a_token_for_a_site_does_not_make_an_operator(study):
    token = done("federation", "invite", "berlin", "--federation", "study").strip()
    assert "give it to `insitu site join`" in call("federation", "join", "op", "--token", token).stderr
    assert not (study.parent / "op").exists()
    assert "a token starts with 'insitu1.'" in call("federation", "join", "op", "--token", "abc").stderr


def test_watching_without_a_screen_says_each_thing_once(capsys):
    told = {
        "run": "r1", "status": "running", "committed": 1, "of": 4, "round": 2, "reason": "", "next": "",
        "waiting_for": [{"site": "rome", "since": 9.0}, {"site": "oslo", "since": 1.0}],
    }  # fmt: skip
    with Watch() as screen:
        screen.show(told)
        screen.show(told)
        screen.away("no answer")
        screen.away("no answer")
        screen.show({**told, "status": "paused", "reason": "by anna", "waiting_for": []})
        screen.events(
            [{"event": "RoundDiscarded", "round": 2, "reason": "too few"}, {"event": "RoundStarted", "round": 3}]
        )
    assert capsys.readouterr().out.splitlines() == [
        "run r1: running, round 2, waiting for rome",
        "no answer",
        "run r1: paused: by anna",
        "round 2 is void: too few",
    ]


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "RunStarted", "round": 0, "resumed": False, "clients": 2, "rounds": 9}, "starts: 2 sites, 9 rounds"),
        (
            {"event": "RunStarted", "round": 3, "resumed": True, "clients": 2, "rounds": 9},
            "goes on after round 3: 2 sites, 9 rounds",
        ),
        (
            {
                "event": "RoundCommitted",
                "round": 3,
                "clients": 2,
                "failed": 1,
                "seconds": 1.26,
                "metrics": {"loss": 0.5},
            },
            "round 3: 2 sites, 1 failed in 1.3 s, train loss 0.5000",
        ),
        ({"event": "ClientFailed", "round": 3, "client": "rome", "error": "x"}, "round 3: rome failed: x"),
        ({"event": "Notice", "round": 3, "text": "slow"}, "slow"),
        ({"event": "RoundSealed", "round": 3}, ""),
    ],
)
def test_events_in_words(event, line):
    assert said(event) == line

"""Files to deploy with: they can be read, fit together, and every command in them is one that insitu has."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PAGES = [
    path
    for name in ("operations", "security", "federations", "examples/hospitals")
    if (path := ROOT / "docs" / f"{name}.md").exists()
] + [DEPLOY / "README.md"]


def _commands() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_commands", Path(__file__).with_name("commands.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


commands = _commands()


def documents() -> list[dict[str, Any]]:
    return [one for path in MANIFESTS for one in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def pods() -> list[tuple[str, dict[str, Any]]]:
    return [
        (one["metadata"]["name"], one["spec"]["template"]["spec"])
        for one in documents()
        if "template" in one.get("spec", {})
    ]


# ------------------------------------------------------------ commands


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_names_only_commands_that_there_are(path: Path) -> None:
    found = commands.in_page(path)
    assert found, f"{path.name} has no command: it says how to do nothing"
    assert [text for words in found if (text := commands.wrong(words))] == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["federation", "found"], "no `insitu federation found`"),
        (["coordinator", "--verbose"], "has no --verbose"),
        (["federation", "invite", "berlin", "--days"], "lacks its value"),
        (["federation", "invite", "berlin", "paris"], "takes 1 words, and not 2"),
        (["federation"], "no command by itself"),
        (["federation", "invite", "berlin", "--days", "3"], ""),
    ],
)
def test_a_wrong_command_is_noticed(words: list[str], text: str) -> None:
    said = commands.wrong(words)
    assert text in said
    assert bool(text) == bool(said)


def test_commands_are_found_wherever_they_stand_in_a_line() -> None:
    text = """```console
$ docker compose exec c insitu status | less   # look
$ docker compose run --rm berlin watch
# runuser -u insitu -- /opt/x/bin/insitu runs
# install -d -o insitu -g insitu folder
```
and `insitu show`
"""
    assert list(commands.in_text(text)) == [["status"], ["watch"], ["runs"], ["show"]]


def test_the_units_start_what_there_is() -> None:
    for unit in UNITS:
        (line,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
        (words,) = commands.in_line(line)
        assert commands.wrong(words) == "", unit.name


def test_pods_start_what_there_is() -> None:
    for name, pod in pods():
        for container in pod["containers"]:
            lines = container["args"] if "command" in container else ["insitu " + " ".join(container["args"])]
            told = [words for text in lines for line in text.splitlines() for words in commands.in_line(line)]
            assert told, name
            assert [text for words in told if (text := commands.wrong(words))] == [], name


def test_the_image_and_the_compose_file_start_what_there_is() -> None:
    image = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r'^ENTRYPOINT \["insitu"\]$', image, re.MULTILINE)
    (usual,) = re.findall(r"^CMD (\[.*\])$", image, re.MULTILINE)
    assert commands.wrong(yaml.safe_load(usual)) == ""
    for name, service in compose()["services"].items():
        if name == "postgres":
            continue
        words = service["command"]
        told = [words] if len(words) > 1 else [w for line in words[0].splitlines() for w in commands.in_line(line)]
        told += [service["healthcheck"]["test"][2:]] if "healthcheck" in service else []
        assert told, name
        assert [text for one in told if (text := commands.wrong(one))] == [], name


def test_alerts_watch_numbers_that_there_are() -> None:
    (block,) = re.findall(
        r"```yaml\n(groups:.*?)```", (ROOT / "docs" / "operations.md").read_text(encoding="utf-8"), re.DOTALL
    )
    rules = [rule for group in yaml.safe_load(block)["groups"] for rule in group["rules"]]
    asked = {name for rule in rules for name in re.findall(r"insitu_\w+", rule["expr"])}
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "insitu" / "federation").glob("*.py"))
    assert len(asked) > 4
    assert {name for name in asked if f'"{name}"' not in source} == set()


# ------------------------------------------------------------ fitting together


def compose() -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_compose_file_declares_what_it_uses() -> None:
    whole = compose()
    used = {volume.split(":")[0] for service in whole["services"].values() for volume in service.get("volumes", [])}
    assert {name for name in used if not name.startswith(".")} == set(whole["volumes"])
    folder = DEPLOY / "compose"
    assert all((folder / name).exists() for name in used if name.startswith("."))
    secrets = {name for service in whole["services"].values() for name in service.get("secrets", [])}
    assert secrets == set(whole["secrets"])
    for name, service in whole["services"].items():
        assert name == "postgres" or (service["read_only"] and service["cap_drop"] == ["ALL"]), name


def test_the_settings_of_the_compose_file_are_settings(tmp_path: Path) -> None:
    from insitu.federation import settings

    told = {"compose": (DEPLOY / "compose" / "federation.toml").read_text(encoding="utf-8")}
    told |= {
        one["metadata"]["name"]: one["data"]["federation.toml"] for one in documents() if one["kind"] == "ConfigMap"
    }
    assert len(told) == 2
    for name, text in told.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / settings.FILE).write_text(text, encoding="utf-8")
        found = settings.load(folder)
        assert found.store.url.startswith("postgresql://"), name
        assert "password" not in found.store.url
        assert found.metrics.listen.endswith(":9464"), name


def test_manifests_fit_together() -> None:
    whole = documents()
    assert all(one["apiVersion"] and one["kind"] and one["metadata"]["name"] for one in whole)
    claims = {one["metadata"]["name"] for one in whole if one["kind"] == "PersistentVolumeClaim"}
    secrets = {one["metadata"]["name"] for one in whole if one["kind"] == "Secret"}
    labels = [
        one["spec"]["template"]["metadata"].get("labels")
        for one in whole
        if one["kind"] in ("Deployment", "StatefulSet")
    ]
    for one in whole:
        selector = one["spec"].get("selector", {}) if "spec" in one else {}
        if one["kind"] == "Service":
            assert selector in labels
        elif selector:
            assert selector["matchLabels"] == one["spec"]["template"]["metadata"]["labels"]
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"], name
        asked = {
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert asked <= claims | {"patients"}, name  # the site's own data
        for container in pod["containers"]:
            inside = container["securityContext"]
            assert inside["readOnlyRootFilesystem"], name
            assert not inside["allowPrivilegeEscalation"], name
            assert {mount["name"] for mount in container["volumeMounts"]} <= {
                volume["name"] for volume in pod["volumes"]
            }
            for variable in container.get("env", []):
                assert variable["valueFrom"]["secretKeyRef"]["name"] in secrets
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container.get(probe, {"httpGet": {"port": next(iter(ports), "")}})["httpGet"][
                    "port"
                ] in ports | {""}


def test_probes_ask_what_the_plain_port_answers() -> None:
    from insitu.engines.https.api.table import LOCAL

    asked = {
        container[probe]["httpGet"]["path"]
        for _, pod in pods()
        for container in pod["containers"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        if probe in container
    }
    asked |= set(re.findall(r"127\.0\.0\.1:9464(/v1/\w+)", (DEPLOY / "Dockerfile").read_text(encoding="utf-8")))
    assert asked == {"/v1/health", "/v1/ready"} <= set(LOCAL)


def test_a_pod_has_more_time_to_end_than_the_coordinator_takes() -> None:
    from insitu.federation.settings import RunsTable

    grace = RunsTable().grace
    (seconds,) = [pod["terminationGracePeriodSeconds"] for name, pod in pods() if name == "insitu-coordinator"]
    (stop,) = re.findall(r"TimeoutStopSec=(\d+)", (DEPLOY / "systemd" / "insitu-coordinator.service").read_text())
    assert min(seconds, int(stop), int(compose()["services"]["coordinator"]["stop_grace_period"].rstrip("s"))) > grace


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        text = unit.read_text(encoding="utf-8").replace("/opt/insitu/bin/insitu", "/bin/true")  # it has to exist
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    files = [str(tmp_path / unit.name) for unit in UNITS]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if str(tmp_path) in line], done.stderr

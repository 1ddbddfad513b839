"""The authority's and the coordinator's certificates are renewed and replaced, in the federation's folder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from insitu.engines.https.authority import Authority
from insitu.federation.folder import OPERATOR_FILE, Folder
from insitu.federation.founding import renew_founder
from insitu.federation.operator import Operator

HANGUP = "a running coordinator takes it up on SIGHUP: kill -HUP PID, or systemctl reload insitu-coordinator"


def renewed(path: Path, hosts: Sequence[str] | None) -> str:
    """Makes the coordinator (or an operator, whose folder it is) a new certificate; says until when it is good.

    hosts  other names of the coordinator than in its settings
    """
    if (path / OPERATOR_FILE).is_file():
        with Operator(path) as operator:
            return f"{operator.name}'s certificate is good until {_day(operator.renew())}"
    folder = Folder(path)
    authority, settings = Authority.load(folder.authority), folder.settings()
    names = list(hosts) if hosts else settings.hosts
    authority.certify_coordinator(names)
    renew_founder(folder, authority)
    until = _day(authority.expires()["coordinator"])
    text = f"the coordinator's certificate is for {', '.join(names)}, until {until}; {HANGUP}"
    if names != settings.hosts:
        text += f". Now say the same in federation.toml: hosts = {names}"
    return text


def rotated(path: Path) -> str:
    """Begins to replace the authority; says what comes next."""
    folder = Folder(path)
    authority = Authority.load(folder.authority)
    authority.rotate(folder.settings().name)
    renew_founder(folder, authority)
    return (
        f"two authorities are trusted now, and the new one signs members; {HANGUP}. Sites renew their certificates by"
        " themselves, other operators with `insitu federation renew OPERATOR-FOLDER`. When all have:"
        " insitu federation rotate-ca --finish"
    )


def finished(path: Path) -> str:
    """Ends the older authority; says what that means."""
    folder = Folder(path)
    authority = Authority.load(folder.authority)
    authority.retire()
    renew_founder(folder, authority)
    return f"the old authority is ended: certificates that it signed count no more; {HANGUP}"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")

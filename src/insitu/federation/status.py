"""Why is it waiting? What is known of a run, put together, and said in lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

QUIET = 60.0
"""Seconds without a word after which a site counts as not connected, where nothing else is known."""


def compose(
    run: str,
    status: str,
    reason: str,
    *,
    committed: int,
    of: int,
    call: Mapping[str, Any],
    voids: int = 0,
    retries: int = 0,
    trouble: str = "",
    again: float | None = None,
    starting: str = "",
    history: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The answer to ``GET /v1/runs/{run}``.

    committed  rounds so far, of ``of``
    call       what is open in the run now, as the exchange tells it; empty where nothing is
    voids      attempts of the present round that were void, of ``retries`` that are allowed
    trouble    what holds the coordinator up: a full disk, a database that is away
    again      seconds until a void round is tried again
    starting   what a queued run waits for
    """
    active = status in ("running", "stopping")
    waiting = [dict(one) for one in call.get("waiting_for", ())] if active else []
    told = {
        "run": run,
        "status": status,
        "reason": reason or trouble,
        "round": min(committed + 1, of) if active else committed,
        "committed": committed,
        "of": of,
        "phase": _phase(status, call, trouble),
        "waiting_for": waiting,
        "accepted": int(call.get("accepted", 0)),
        "failed": int(call.get("failed", 0)),
        "asked": int(call.get("asked", 0)),
        "voids": voids,
        "retries": retries,
        "history": dict(history or {}),
    }
    told["next"] = _next(told, call, trouble, starting) if again is None else _again(told, again)
    return told


def _phase(status: str, call: Mapping[str, Any], trouble: str) -> str:
    if status != "running":
        return status
    if trouble:
        return "held up"
    return str(call.get("phase") or ("waiting for sites" if call else "between rounds"))


def _next(told: Mapping[str, Any], call: Mapping[str, Any], trouble: str, starting: str) -> str:
    run, status, round = told["run"], told["status"], told["round"]
    if status == "queued":
        return starting or "it starts when there is room for it"
    if status == "stopping":
        return "it stops as soon as its engine lets go"
    if status == "paused":
        return f"`insitu resume {run}` goes on with round {told['committed'] + 1}"
    if status in ("failed", "stopped"):
        return f"nothing; `insitu resume {run}` tries again from round {told['committed'] + 1}"
    if status == "finished":
        return "nothing: all rounds are done"
    if trouble:
        return f"round {round} goes on once that is mended; it is tried again by itself"
    if not call:
        return f"round {round} is opened"
    if call.get("next"):
        return str(call["next"])
    deadline = call.get("deadline_in")
    if deadline is None:
        rest = "when they have answered; there is no deadline ([policy] deadline)"
    else:
        rest = f"when they have answered, or in {duration(deadline)}, with the quorum or not at all"
    return f"round {round} ends {rest}" if told["waiting_for"] else f"round {round} is folded and committed"


def _again(told: Mapping[str, Any], seconds: float) -> str:
    return f"round {told['round']} was void, and is tried again in {duration(seconds)}"


def lines(told: Mapping[str, Any]) -> list[str]:
    """A run's status as text."""
    head = f"run {told['run']}: {told['status']}, {told['committed']} of {told['of']} rounds"
    out = [head]
    if told["reason"]:
        out.append(f"  because: {told['reason']}")
    if told["status"] == "running":
        out.append(f"  round {told['round']}: {_counts(told)}")
    if told["voids"]:
        out.append(f"  {_attempts(told)} void; more than {told['retries']} stop the run")
    out += [f"  waiting for {waited}" for waited in map(waiting, told["waiting_for"])]
    out.append(f"  next: {told['next']}")
    if told["history"]:
        out.append(f"  last: {last(told['history'])}")
    return out


def _counts(told: Mapping[str, Any]) -> str:
    if not told["asked"]:
        return str(told["phase"])
    failed = f", {told['failed']} failed" if told["failed"] else ""
    return f"{told['phase']}: {told['accepted']} of {told['asked']} sites have answered{failed}"


def _attempts(told: Mapping[str, Any]) -> str:
    many = told["voids"] > 1
    return f"{told['voids']} attempt{'s' if many else ''} of round {told['round']} {'were' if many else 'was'}"


def waiting(one: Mapping[str, Any]) -> str:
    """``berlin: training, heard 3 s ago, asked 12 s ago, deadline in 48 s``."""
    contact, since, deadline = one.get("last_contact"), one.get("since"), one.get("deadline_in")
    parts = [str(one.get("phase") or "not asked yet")]
    if one.get("done") is not None:
        parts[0] += f" ({one['done']:.0%})"
    if contact is None:
        parts.append("never heard since this coordinator started")
    elif contact > QUIET:
        parts.append(f"not heard for {duration(contact)}: is it running, and online?")
    else:
        parts.append(f"heard {duration(contact)} ago")
    if since is not None:
        parts.append(f"asked {duration(since)} ago")
    if deadline is not None:
        parts.append(f"deadline in {duration(deadline)}")
    return f"{one['site']}: {', '.join(parts)}"


def last(history: Mapping[str, Any]) -> str:
    """``round 11, 4 sites, accuracy 0.9321``: the newest metrics, those that say most."""
    names = [n for n in ("loss", "accuracy") if n in history] or [
        n for n in ("clients_loss", "clients_accuracy", "train_loss", "train_accuracy") if n in history
    ]
    figures = "".join(f", {name.replace('_', ' ')} {history[name]:.4f}" for name in names if _is_number(history[name]))
    return f"round {history.get('round')}, {history.get('clients')} sites{figures}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole_lines(told: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A federation's status as text: who leads, who is there, what runs."""
    away = "database" in (told.get("wrong") or {})
    leads = f"led by {told.get('leader') or 'nobody'}"
    out = [f"federation {told.get('name')}: {'this coordinator has no database' if away else leads}"]
    for what, why in sorted((told.get("wrong") or {}).items()):
        out.append(f"  not ready: {what}: {why}")
    out += [f"  {line}" for line in site_lines(told.get("sites") or []) if told.get("sites") or not away]
    if not runs and not away:
        out.append("no run is queued, running or paused: `insitu submit plan.toml` starts one")
    for one in runs:
        out += lines(one)
    return out


def site_lines(sites: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a site: connected or not, what it is doing."""
    found = []
    for site in sites:
        if site.get("role") != "site" or site.get("revoked"):
            continue
        contact = site.get("last_contact")
        if site.get("connected"):
            state = site.get("doing") or "idle"
            state += "" if contact is None else f", heard {duration(contact)} ago"
        elif contact is None:
            state = "not connected"
        else:
            state = f"not connected, heard {duration(contact)} ago"
        examples = (site.get("declared") or {}).get("data", site.get("declared") or {}).get("examples")
        state += "" if examples is None else f", {examples} examples"
        found.append(f"site {site['name']}: {state}")
    return found or ["no site is enrolled: `insitu federation invite NAME` lets one in"]


def duration(seconds: float) -> str:
    """``3 s``, ``12 min``, ``5 h``, ``2 days``: as exact as people need it."""
    seconds = max(0.0, seconds)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"

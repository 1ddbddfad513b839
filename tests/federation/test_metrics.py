"""Prometheus's text, read back by its own rules."""

from __future__ import annotations

import re

from insitu.federation import metrics
from insitu.federation.metrics import Rounds

LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? ([0-9.e+-]+)')


def values(text):
    found, kinds = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            name, labels, value = LINE.fullmatch(line).groups()
            assert any(name in (known, f"{known}_bucket", f"{known}_sum", f"{known}_count") for known in kinds), name
            found[name, labels or ""] = float(value)
    return found, kinds


def test_rounds_are_counted():
    rounds = Rounds()
    for seconds in (0.05, 0.5, 0.5, 20000.0):
        rounds.commit(seconds)
    rounds.discard()
    rounds.fail()
    found, kinds = values(metrics.text(rounds, []))
    assert kinds["insitu_round_seconds"] == "histogram"
    assert [found["insitu_round_seconds_bucket", f'le="{end}"'] for end in ("0.1", "0.3", "1", "7200", "+Inf")] == [
        1, 1, 3, 3, 4,
    ]  # fmt: skip
    assert found["insitu_round_seconds_sum", ""] == 20001.05
    assert found["insitu_rounds_committed_total", ""] == 4
    assert found["insitu_rounds_discarded_total", ""] == 1
    assert found["insitu_site_failures_total", ""] == 1


def test_labels_are_escaped():
    codes = {'a"b\\c\nd': 2.5, "STALE_ROUND": 7}
    text = metrics.text(Rounds(), [metrics.by("insitu_refused_total", "counter", "Refused.", "code", codes)])
    found, _ = values(text)
    assert found["insitu_refused_total", 'code="STALE_ROUND"'] == 7
    assert found["insitu_refused_total", r'code="a\"b\\c\nd"'] == 2.5
    assert "\nd" not in text.replace(r"\nd", "")


def test_a_number_without_labels():
    found, kinds = values(metrics.text(Rounds(), [metrics.one("insitu_leading", "gauge", "Whether it leads.", True)]))
    assert (found["insitu_leading", ""], kinds["insitu_leading"]) == (1, "gauge")

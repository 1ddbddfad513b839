"""The description of a run: what is in it, and what is none."""

from __future__ import annotations

import json

import pytest
from federations import fedavg, tables
from hypothesis import given
from hypothesis import strategies as st

from insitu.core.errors import PlanError, Refusal
from insitu.engines.https import description

TABLES = {
    "algorithm": {"name": "fedavg", "lr": 0.1}, "learner": {"name": "logistic"}, "data": {"source": "secret.py:load"},
    "run": {"rounds": 3, "store": "runs.db", "engine": "inline", "seed": 4}, "stages": [], "cohort": None,
}  # fmt: skip


def made(**more):
    clients = tables()
    plan = fedavg(clients)
    given = {"run": "r", "tables": TABLES, "plan": plan, "start": plan.learner.init(4), "seed": 4, "code": {}}
    return description.make(**given | {"schema": clients.schema()} | more)


def test_it_holds_the_plan_and_nothing_of_the_coordinators():
    told = made(code={"net.py:Net": "0" * 64})
    assert told["tables"] == {
        "algorithm": {"name": "fedavg", "lr": 0.1}, "learner": {"name": "logistic"}, "run": {"rounds": 3, "seed": 4},
    }  # fmt: skip
    assert told["schema"] == {"features": [5], "classes": [0, 1, 2]}
    assert told["plan"] == fedavg(tables()).digest(fedavg(tables()).learner.init(4))
    assert description.checked(json.loads(description.text_of(told))) == json.loads(description.text_of(told))
    assert "secret" not in description.text_of(told)
    assert made(seed=5) != made()


def test_tables_without_an_algorithm_make_none():
    with pytest.raises(PlanError, match=r"no \[algorithm\]"):
        made(tables={"run": {}})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run": ""}, "run is no name"),
        ({"seed": 1.5}, "seed"),
        ({"plan": "abc"}, "plan is no SHA-256"),
        ({"tables": {"data": {}}}, "tables are"),
        ({"tables": []}, "tables is no object"),
        ({"versions": {"insitu": 3}}, "versions"),
        ({"code": {"a:b": "x"}}, "code"),
        ({"schema": {"features": [1.5]}}, "features"),
        ({"schema": {"features": [-1]}}, "features"),
        ({"schema": {"classes": [1, "a"]}}, "classes"),
        ({"protocol": "1"}, "protocol"),
    ],
)
def test_what_is_none_is_refused_by_field(change, says):
    with pytest.raises(Refusal, match=says) as refused:
        description.checked({**made(), **change})
    assert refused.value.code == "BAD_MANIFEST"


def test_one_of_a_protocol_far_away_is_of_another_version():
    assert description.checked({**made(), "protocol": 2})["protocol"] == 2
    with pytest.raises(Refusal) as refused:
        description.checked({"protocol": 3})
    assert refused.value.code == "VERSION"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["features", "classes", "a"]), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(made())), json_values))
def test_anything_else_is_refused_and_breaks_nothing(changes):
    code = ""
    try:
        description.checked({**made_once, **changes})
    except Refusal as refusal:
        code = refusal.code
    assert code in ("", "BAD_MANIFEST", "VERSION")


made_once = made()

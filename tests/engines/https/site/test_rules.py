"""What a site lets itself be asked for, whatever a coordinator says."""

from __future__ import annotations

import pytest

from insitu.core.errors import Refusal
from insitu.engines.https.site.rules import Rules, references
from insitu.engines.https.wire.manifest import Manifest

PLAN = {"algorithm": {"name": "fedavg", "lr": 0.1}, "learner": {"name": "logistic"}, "run": {"rounds": 3}}
TASK = {"task": "0" * 32, "message": "1" * 64, "description": "2" * 64, "kind": "train", "asked": 4}


def refused(act) -> str:
    with pytest.raises(Refusal) as found:
        act()
    assert found.value.code == "SITE_REFUSED"
    return str(found.value)


def describe(**tables):
    return {"tables": {**PLAN, **tables}}


def test_what_comes_with_insitu_is_allowed():
    Rules().check_description(describe(stages=[{"name": "clip", "norm": 1.0}], policy={"deadline": "00:10:00"}))
    Rules().check_task(TASK)


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        ({"algorithm": {"name": "os:system"}}, "os:system"),
        ({"learner": {"name": "torch", "module": "evil:Net"}}, "evil:Net"),
        ({"learner": {"name": "torch", "module": "../../etc/passwd.py:Net"}}, "outside"),
        ({"learner": {"name": "torch", "module": "/tmp/x.py:Net"}}, "outside"),
        ({"algorithm": {"name": "fedavg", "server": {"name": "deep:er", "x": [{"y": "os:1"}]}}}, "deep:er"),
        ({"algorithm": {"name": "fedavg", "x": [[["subprocess:Popen"]]]}}, "subprocess:Popen"),
        ({"algorithm": {"name": "fedavg", "x": "os:1"}}, "os:1"),
        ({"algorithm": {"name": "../fedavg"}}, "no name"),
        ({"algorithm": {"name": "a" * 4096}}, "no name"),
        ({"algorithm": {"name": 5}}, "no name"),
        ({"data": {"source": "x"}}, "data"),
        ({"stages": [{"name": "evil.py:Stage"}]}, "evil.py:Stage"),
    ],
)
def test_code_is_not_allowed_unless_the_site_says_so(tables, named):
    text = refused(lambda: Rules().check_description(describe(**tables)))
    assert named in text
    assert len(text) < 400


def test_a_site_allows_what_it_names():
    rules = Rules(code=("my_models:*", "net.py:Net"))
    rules.check_description(describe(learner={"name": "torch", "module": "my_models:Large"}))
    rules.check_description(describe(learner={"name": "torch", "module": "net.py:Net"}))
    assert "net.py:Other" in refused(
        lambda: rules.check_description(describe(learner={"name": "torch", "module": "net.py:Other"}))
    )


def test_names_may_be_few():
    rules = Rules(algorithms=("fedprox",), stages=())
    text = refused(lambda: rules.check_description(describe()))
    assert "'fedavg'" in text
    assert "allow.algorithms" in text
    other = {"algorithm": {"name": "fedprox"}, "stages": [{"name": "clip"}]}
    assert "allow.stages" in refused(lambda: rules.check_description(describe(**other)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"asked": 1}, "least_cohort"),
        ({"asked": True}, "least_cohort"),
        ({"asked": "9"}, "least_cohort"),
        ({"kind": "shell"}, "allow.kinds"),
        ({"task": "../x"}, "digests"),
        ({"message": None}, "digests"),
        ({"description": "z" * 64}, "digests"),
    ],
)
def test_a_task_that_asks_for_too_much_is_refused(change, named):
    assert named in refused(lambda: Rules().check_task({**TASK, **change}))


def test_metrics_stay_where_the_site_says_so():
    rules = Rules(metrics=False)
    assert rules.told({"loss": 1.0}) == {}
    assert Rules().told({"loss": 1.0}) == {"loss": 1.0}
    assert "allow.metrics" in refused(lambda: rules.check_task({**TASK, "kind": "evaluate"}))
    assert "allow.kinds" in refused(lambda: Rules(kinds=("train",)).check_task({**TASK, "kind": "predict"}))


def test_a_model_too_large_is_refused_before_it_is_fetched():
    def of(length):
        return Manifest("message", length, (), (), "", "", "")

    Rules(largest_model=100).check_message(of(100))
    assert "allow.largest_model" in refused(lambda: Rules(largest_model=100).check_message(of(101)))


def test_references_are_found_however_deep():
    assert sorted(references({"a": [{"b": "x:y"}], "c": "00:10:00", "d": {"e": ["z.py:w", "plain"]}})) == [
        "x:y",
        "z.py:w",
    ]

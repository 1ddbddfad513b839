"""A site builds the very plan that the coordinator has, or says why not."""

from __future__ import annotations

import numpy as np
import pytest

from insitu.core.errors import Refusal
from insitu.core.types import Schema
from insitu.engines.https.site.rules import Rules
from insitu.federation import building, tables
from insitu.record import versions

TABLES = {
    "run": {"rounds": 3, "evaluate_every": 2},
    "algorithm": {"name": "fedprox", "lr": 0.1, "mu": 0.01, "optimizer": {"name": "momentum", "beta": 0.5}},
    "learner": {"name": "logistic"},
    "policy": {"quorum": 0.5, "deadline": "00:10:00"},
}
MODEL = "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(3, 2)\n"


def describe(code, plan_tables=TABLES, **changed):
    """As a coordinator with the same code does."""
    plan = tables.submitted(plan_tables, "a-run", code).plan().resolve(Schema((3,), np.arange(2)))
    return {
        "protocol": 1, "run": "a-run", "tables": plan_tables, "seed": 7, "schema": {"features": [3], "classes": [0, 1]},
        "plan": plan.digest(plan.learner.init(7)), "config": plan.config(), "versions": versions(),
        "code": building.fingerprints(plan_tables, code), **changed,
    }  # fmt: skip


def test_the_same_plan_comes_out(tmp_path):
    plan = building.build(describe(tmp_path), tmp_path, Rules())
    assert plan.algorithm.mu == 0.01
    assert plan.policy.deadline.total_seconds() == 600
    assert plan.evaluate_every == 2


def refused(told, code, rules=None):
    with pytest.raises(Refusal) as found:
        building.build(told, code, rules or Rules())
    return found.value


def test_another_plan_is_named_by_what_differs(tmp_path):
    told = describe(tmp_path)
    told["config"]["algorithm"]["mu"] = 0.5
    found = refused({**told, "plan": "0" * 64}, tmp_path)
    assert found.code == "SITE_REFUSED"
    assert "algorithm.mu is '0.5' there and '0.01' here" in str(found)


def test_what_cannot_be_built_says_so(tmp_path):
    told = describe(tmp_path)
    told["tables"] = {**TABLES, "algorithm": {"name": "fedprox", "lr": -1}}
    assert "lr" in str(refused(told, tmp_path))


@pytest.mark.parametrize(
    ("theirs", "ours", "fits"),
    [("0.1.0", "0.1.9", True), ("0.2.0", "0.1.0", True), ("0.1.0", "0.2.0", True), ("0.3.0", "0.1.0", False),
     ("1.0.0", "0.9.0", False), ("?", "0.1.0", False), ("0", "0.1.0", False)],
)  # fmt: skip
def test_one_minor_version_apart_they_work_together(theirs, ours, fits):
    if fits:
        building.check_version(theirs, ours)
        return
    with pytest.raises(Refusal) as found:
        building.check_version(theirs, ours)
    assert found.value.code == "SITE_REFUSED"


def test_code_is_compared_by_its_digest(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
        (folder / "net_of_a_site.py").write_text(MODEL)
    with_code = {**TABLES, "learner": {"name": "torch", "module": "net_of_a_site.py:Net"}}
    told = describe(there, with_code)
    assert list(told["code"]) == ["net_of_a_site.py:Net"]
    rules = Rules(code=("net_of_a_site.py:*",))
    assert "allow.code" in str(refused(told, here))
    building.check_code(told["code"], with_code, here)
    (here / "net_of_a_site.py").write_text(MODEL + "# another\n")
    assert "other code here" in str(refused(told, here, rules))


def test_code_outside_of_the_folder_has_no_fingerprint(tmp_path):
    (tmp_path / "outside.py").write_text(MODEL)
    code = tmp_path / "code"
    code.mkdir()
    with pytest.raises(Refusal, match="outside"):
        building.fingerprints({"learner": {"module": "../outside.py:Net"}}, code)


def test_installed_libraries_have_versions_instead(tmp_path):
    told = {"learner": {"name": "sklearn", "estimator": "sklearn.linear_model:SGDClassifier"}}
    assert building.fingerprints(told, tmp_path) == {}


def test_code_that_was_changed_after_it_was_loaded_wants_a_new_start(tmp_path):
    (tmp_path / "net_that_changes.py").write_text(MODEL)
    with_code = {**TABLES, "learner": {"name": "torch", "module": "net_that_changes.py:Net"}}
    building.check_code(describe(tmp_path, with_code)["code"], with_code, tmp_path)
    (tmp_path / "net_that_changes.py").write_text(MODEL + "# another\n")
    both = building.fingerprints(with_code, tmp_path)  # the coordinator has the new file as well
    with pytest.raises(Refusal, match="start this site again"):
        building.check_code(both, with_code, tmp_path)


@pytest.mark.parametrize(
    "change", [{"run": 5}, {"seed": "7"}, {"plan": None}, {"config": []}, {"versions": "new"}, {"code": None}]
)
def test_a_description_of_another_form_is_refused_by_the_fields_name(tmp_path, change):
    found = refused({**describe(tmp_path), **change}, tmp_path)
    assert found.code == "SITE_REFUSED"
    assert next(iter(change)) in str(found)

"""A site builds the very plan that the coordinator has, or says why not."""

from __future__ import annotations

import numpy as np
import pytest

from insitu.core.errors import Refusal
from insitu.core.types import Schema
from insitu.engines.https.site.rules import Rules
from insitu.federation import building, tables
from insitu.federation.neighbours import neighbours
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


HELPED = (
    """
from layers_of_a_site import dense
from pack_of_a_site.inner import scale
"""
    + MODEL
)


def helped(folder, changed=""):
    """Code in five files: what the plan names, a module beside it, and a package that imports within itself."""
    (folder / "pack_of_a_site").mkdir(parents=True)
    files = {
        "net_with_helpers.py": HELPED,
        "layers_of_a_site.py": "import numpy\nimport json\n\n\ndef dense():\n    from pack_of_a_site import inner\n",
        "pack_of_a_site/__init__.py": "",
        "pack_of_a_site/inner.py": "from . import deep\nfrom .deep import thing as scale\n",
        "pack_of_a_site/deep.py": "import net_with_helpers\nthing = 1\n",
        "nobody_imports_this.py": "",
    }
    for name, text in files.items():
        (folder / name).write_text(text + ("# another\n" if name == changed else ""))
    return {**TABLES, "learner": {"name": "torch", "module": "net_with_helpers.py:Net"}}


FILES = ["layers_of_a_site.py", "pack_of_a_site/__init__.py", "pack_of_a_site/deep.py", "pack_of_a_site/inner.py"]


def test_files_that_named_code_imports_are_part_of_its_fingerprint(tmp_path):
    with_code = helped(tmp_path / "there")
    told = building.fingerprints(with_code, tmp_path / "there")
    assert sorted(told) == sorted([*FILES, "net_with_helpers.py:Net"])
    assert told == building.fingerprints(with_code, tmp_path / "there")
    helped(tmp_path / "same")
    building.check_code(told, with_code, tmp_path / "same")
    by_module = {**TABLES, "learner": {"name": "torch", "module": "net_with_helpers:Net"}}
    assert sorted(building.fingerprints(by_module, tmp_path / "there")) == sorted([*FILES, "net_with_helpers:Net"])


@pytest.mark.parametrize("changed", FILES)
def test_a_changed_helper_is_noticed_and_named(tmp_path, changed):
    with_code = helped(tmp_path / "there")
    told = building.fingerprints(with_code, tmp_path / "there")
    helped(tmp_path / "here", changed)
    with pytest.raises(Refusal, match=rf"'{changed}' is other code here than at the coordinator") as found:
        building.check_code(told, with_code, tmp_path / "here")
    assert found.value.code == "SITE_REFUSED"
    (tmp_path / "here" / changed).unlink()
    with pytest.raises(Refusal, match=rf"^'{changed}': imported by the coordinator's code, and not there"):
        building.check_code(told, with_code, tmp_path / "here")


def test_a_helper_that_the_coordinator_has_not_is_named(tmp_path):
    with_code = helped(tmp_path / "there")
    helped(tmp_path / "here")
    (tmp_path / "there" / "layers_of_a_site.py").unlink()
    told = building.fingerprints(with_code, tmp_path / "there")
    with pytest.raises(Refusal, match=r"'layers_of_a_site\.py' is other code here"):
        building.check_code(told, with_code, tmp_path / "here")


def test_a_package_that_is_not_installed_has_a_fingerprint_of_its_own_files(tmp_path, monkeypatch):
    """Its __init__ is executed as well, and what that imports; what stands beside the package is another one's."""
    folder = tmp_path / "elsewhere" / "kit_of_a_site"
    (folder / "sub").mkdir(parents=True)
    for name, text in {
        "__init__.py": "from .base import a\n", "base.py": "a = 1\n", "other.py": "", "sub/__init__.py": "",
        "sub/net.py": "from ..base import a\nfrom ...outside import b\nimport insitu\n" + MODEL, "broken.py": "def (",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    code = tmp_path / "code"
    code.mkdir()
    told = building.fingerprints({"learner": {"module": "kit_of_a_site.sub.net:Net"}}, code)
    assert sorted(told) == [
        "kit_of_a_site.sub.net:Net", "kit_of_a_site/__init__.py", "kit_of_a_site/base.py",
        "kit_of_a_site/sub/__init__.py",
    ]  # fmt: skip


def test_insitus_own_files_have_its_version_instead(tmp_path):
    assert building.fingerprints({"learner": {"module": "insitu.learners.numpy:LogisticLearner"}}, tmp_path) == {}


def test_text_that_is_no_code_imports_nothing(tmp_path):
    for name, text in {"a.py": "import b\n", "b.py": "def (", "c.py": "x = '\x00"}.items():
        (tmp_path / name).write_text(text)
    assert neighbours(tmp_path / "a.py", tmp_path) == [tmp_path / "b.py"]
    assert neighbours(tmp_path / "b.py", tmp_path) == neighbours(tmp_path / "c.py", tmp_path) == []


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

"""Four hospitals: each makes its patients ready by itself, and the comparison is of the same plan and patients."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from insitu.core.errors import DataError
from insitu.data.heart import FILES, heart

FOLDER = Path(__file__).parents[2] / "examples" / "hospitals"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"hospitals_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def patients():
    try:
        FILES.find("processed.va.data", None)
    except DataError:
        pytest.skip("the heart data are not on this machine: set INSITU_DATA to the folder that holds them")
    return module("hospital").patients


HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


def test_all_hospitals_have_the_same_columns(patients) -> None:
    sets = [patients(name) for name in HOSPITALS]
    assert len({one.features for one in sets}) == 1
    assert [len(one) for one in sets] == [303, 294, 123, 200]
    assert all(np.isfinite(one.x).all() for one in sets)


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_what_is_missing_is_what_the_reader_of_all_says(patients, hospital: str) -> None:
    """By the other way to read the same files, which knows all four hospitals."""
    whole = heart(impute=None, one_hot=False, scale=False)
    rows, own = whole.keys == hospital, patients(hospital)
    for name in own.features:
        if not name.endswith(" missing"):
            continue
        expected = whole.x[rows, whole.features.index(name)] if name in whole.features else np.zeros(rows.sum())
        np.testing.assert_array_equal(own.x[:, own.features.index(name)], expected, err_msg=name)
    np.testing.assert_array_equal(own.y, whole.y[rows])
    age = own.x[:, own.features.index("age")] * 9.0 + 54.0
    np.testing.assert_allclose(age, whole.x[rows, whole.features.index("age")])


def test_a_measure_never_taken_counts_as_usual_and_one_seldom_taken_as_the_own_median(patients) -> None:
    swiss, va = patients("switzerland"), patients("va")
    column = swiss.features.index("chol")
    assert (swiss.x[:, swiss.features.index("chol missing")] == 1).all()
    assert (swiss.x[:, column] == 0).all()
    missing = va.x[:, va.features.index("chol missing")] == 1
    assert 0 < missing.sum() < len(va)
    assert set(va.x[missing, column]) == {np.median(va.x[~missing, column])}


def test_a_hospital_needs_no_other_s_file(patients, tmp_path: Path) -> None:
    (tmp_path / "heart-disease").mkdir()
    own = FILES.find("processed.va.data", None)
    (tmp_path / "heart-disease" / own.name).write_bytes(own.read_bytes())
    assert len(patients("va", root=str(tmp_path))) == 200


def test_pooled_beats_alone(patients) -> None:
    run = module("run")
    clients = {name: run.patients(name) for name in HOSPITALS}
    found = run.compared(clients, 10)
    means = {name: values[-1] for name, values in found.items()}
    assert max(means, key=means.__getitem__) == "all pooled"
    assert [len(client.holdout) for client in clients.values()] == [91, 88, 37, 60]


@pytest.mark.long
def test_five_processes_learn_what_one_would(patients, tmp_path: Path) -> None:
    """The model of the federation against FedAvg in one process on the same clients."""
    import insitu
    from insitu.federation import tables

    command = [sys.executable, str(FOLDER / "run.py"), "--rounds", "10", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = re.findall(r"^\| the federation \|(.*)\|$", done.stdout, re.MULTILINE)
    run = module("run")
    clients = {name: run.patients(name) for name in HOSPITALS}
    plan = tables.submitted(tables.read(FOLDER / "plan.toml")[0], "inline", FOLDER).plan()
    result = insitu.run(plan, run.named(clients), rounds=10, evaluate_every=0, engine="inline", observers=())
    assert [float(text) for text in line.split("|")] == [round(x, 3) for x in run.scores(dict(result.params), clients)]
    with np.load(tmp_path / "kept" / "model.npz") as arrays:
        for name, value in result.params.items():
            np.testing.assert_allclose(arrays[f"shared/{name}"], value, rtol=0, atol=1e-6)

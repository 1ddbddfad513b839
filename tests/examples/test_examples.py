"""The examples run, and show what their pages say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """A script of the examples' folder as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_page_and_a_test() -> None:
    source = Path(__file__).read_text()
    for script in EXAMPLES.glob("*.py"):
        assert (EXAMPLES.parent / "docs" / "examples" / f"{script.stem}.md").is_file(), script
        assert f'"{script.stem}"' in source, script


def test_iris_predictions_are_the_same_wherever_the_rows_are() -> None:
    predictions = example("iris_knn").main()
    assert len(predictions) == 4
    central = predictions.pop("central, scikit-learn")
    assert len(central) == 30
    for name, labels in predictions.items():
        np.testing.assert_array_equal(labels, central, err_msg=name)


def test_the_loop_by_hand_and_the_library_agree() -> None:
    torch = pytest.importorskip("torch")
    module = example("fedavg_plain")
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        plain, ours = module.main(dtype)
        assert np.abs(plain).max() > 0.1
        assert np.abs(plain - ours).max() <= limit * np.abs(plain).max()


def test_the_loop_by_hand_is_short() -> None:
    assert len((EXAMPLES / "fedavg_plain.py").read_text().splitlines()) < 60


def test_a_model_object_learns_as_well_split_as_whole() -> None:
    found = example("worker_server").main(rounds=15)
    whole = found["one machine, all data"]
    assert whole > 0.9
    assert found["distributed, 4 shards on 2 workers"] > whole - 0.02
    assert found["federated, 20 uneven clients"] > whole - 0.05


def test_peers_agree_as_fast_as_their_topology_lets_them(tmp_path: Path) -> None:
    module = example("peer_averaging")
    found = module.main(nodes=12, rounds=30, picture=str(tmp_path / "agreement.png"))
    assert (tmp_path / "agreement.png").stat().st_size > 10_000
    assert found["complete"][0] < 1e-9
    for topology in ("ring", "grid"):
        rate = (found[topology][25] / found[topology][15]) ** 0.1
        assert rate == pytest.approx(module.second_eigenvalue(topology, 12), abs=0.01)
    # By the theory of a symmetric mixing matrix, no round keeps more than its second eigenvalue.
    for topology, values in found.items():
        kept = np.array(values[1:10]) / np.maximum(values[:9], 1e-12)
        assert (kept <= module.second_eigenvalue(topology, 12) + 1e-6).all() or values[0] < 1e-9


def test_phones_that_are_not_waited_for_save_time() -> None:
    found = example("simulated_phones").main(rounds=12)
    waits, first, minute, never = ([row["clock"] for row in history] for history in found.values())
    assert max(first[-1], minute[-1], never[-1]) < waits[-1]
    for history in found.values():
        assert history[-1]["accuracy"] > 0.6


WAYS = ("synchronous", "eight_bit", "local_sgd", "diloco", "streaming_diloco", "gossip")


@pytest.fixture
def gpt(tmp_path: Path) -> tuple[ModuleType, list[str]]:
    """The example, and what makes its runs short and independent of whether Shakespeare is there."""
    pytest.importorskip("torch")
    source = f'data.source={{ name = "../char_gpt.py:windows", root = "{tmp_path}", test = 20 }}'
    model = 'learner={ name = "torch", module = "../char_gpt.py:CharGPT", arguments = { width = 16, layers = 1 } }'
    return example("char_gpt"), [source, model, "run.rounds=2", "run.evaluate_every=1"]


@pytest.mark.parametrize("way", WAYS)
def test_a_small_gpt_learns_in_every_way(gpt: tuple[ModuleType, list[str]], way: str) -> None:
    module, short = gpt
    steps = 1 if way == "eight_bit" else 3  # stages are for rounds of one step
    one, again, lanes = (
        module.train(way, *short, f"algorithm.steps={steps}", engine=engine)
        for engine in ("inline", "inline", "vectorized")
    )
    losses = one.history.column("loss")[1]
    assert losses[1] < losses[0] < 4.3  # ln 65 = 4.17, to begin with
    assert again.history.column("loss")[1] == losses
    assert lanes.choices["step"] == "stacked"  # side by side, in layers that know of lanes
    assert lanes.history.column("loss")[1] == pytest.approx(losses, rel=1e-4)


def test_the_ways_of_the_gpt_differ_in_their_method_alone() -> None:
    pytest.importorskip("torch")
    from insitu.config import load

    module = example("char_gpt")
    assert (
        tuple(sorted(path.stem for path in module.HERE.glob("*.toml")))
        == tuple(sorted(WAYS))
        == tuple(sorted(module.WAYS))
    )
    assert sum(p.numel() for p in module.CharGPT().parameters()) <= 200_000
    learners, seen = [], []
    for way in WAYS:
        config = load(module.HERE / f"{way}.toml")
        tables = config.to_dict()
        plan = config.plan()
        steps = config.run.rounds * tables["algorithm"]["steps"]
        assert steps == 1400
        assert plan.algorithm.lr.rounds == config.run.rounds
        learners.append(tables["learner"])
        batches = 1 if tables["algorithm"]["name"] == "data_parallel" else tables["data"]["partition"]["clients"]
        seen.append(batches * plan.algorithm.batch_size)
    assert learners == learners[:1] * len(WAYS)
    assert seen == [32] * len(WAYS)  # windows in a step


def test_the_gpt_sends_a_fiftieth_every_fifty_steps(gpt: tuple[ModuleType, list[str]]) -> None:
    module, short = gpt
    synchronous = module.train("synchronous", *short, "algorithm.steps=2", engine="inline").history[1]
    local = module.train("diloco", *short, "algorithm.steps=2", engine="inline").history[1]
    # Every step tells the model; a round of any number of local steps tells it once (and a few bytes of its own).
    assert 2 * local["bytes_up"] == pytest.approx(synchronous["bytes_up"], rel=1e-3)
    assert 2 * local["bytes_down"] == pytest.approx(synchronous["bytes_down"], rel=1e-3)


def test_trees_are_the_same_on_workers_and_clients() -> None:
    pytest.importorskip("xgboost")
    found = example("trees_over_workers").main()
    assert len(found) == 3
    for name, p in found.items():
        np.testing.assert_allclose(p, found["one process"], rtol=0, atol=1e-5, err_msg=name)

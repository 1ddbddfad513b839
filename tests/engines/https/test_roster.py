"""A run's sites as a population: who takes part when, and what their declarations say together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from federations import MemoryLedger

from insitu.core.errors import DataError
from insitu.core.types import Elsewhere
from insitu.engines.https.roster import Sites


def ledger_of(**sites):
    ledger = MemoryLedger()
    for name, declared in sites.items():
        ledger.enrol(name, **{"examples": 10, "features": [3], "classes": [0, 1]} | declared)
    ledger.admit("run", list(sites), 1)
    return ledger


def test_it_is_what_the_sites_declare():
    sites = Sites(ledger_of(a={}, b={"examples": 7, "classes": [1, 2], "holdout": 2}), "run")
    assert [sites.id_at(place) for place in range(len(sites))] == ["a", "b"]
    assert [sites.size_at(place) for place in range(2)] == [10, 7]
    assert sites.has_holdout()
    assert sites.schema().features == (3,)
    assert np.array_equal(sites.schema().classes, [0, 1, 2])
    assert isinstance(sites, Elsewhere)
    with pytest.raises(DataError, match="stay there"):
        sites.at(0)


def test_classes_as_text_and_none_at_all():
    sites = Sites(ledger_of(a={"classes": ["no", "yes"]}, b={"classes": ["maybe"]}), "run")
    assert list(sites.schema().classes) == ["maybe", "no", "yes"]
    assert not sites.has_holdout()
    sites = Sites(ledger_of(a={"classes": None, "features": None}, b={"classes": None, "features": None}), "run")
    assert (sites.schema().features, sites.schema().classes) == (None, None)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"features": [4]}, r"'a' declares features \[3\] and 'b' \[4\]"),
        ({"features": None}, "'b' None"),
        ({"classes": None}, "'a' declares classes and 'b' none"),
        ({"classes": ["x"]}, "'b' declares classes as text and 'a' as numbers"),
    ],
)
def test_sites_that_do_not_fit_together_are_named(other, says):
    with pytest.raises(DataError, match=says):
        Sites(ledger_of(a={}, b=other), "run").schema()


def test_it_grows_between_rounds_by_those_who_have_declared_and_may():
    ledger = ledger_of(a={}, b={})
    sites = Sites(ledger, "run")
    for name in "cdef":
        ledger.enrol(name, 5, features=[3], classes=[7])
    ledger.people["d"] = replace(ledger.people["d"], revoked=1.0)
    ledger.people["e"] = replace(ledger.people["e"], declared={})
    ledger.people["f"] = replace(ledger.people["f"], role="viewer")
    assert sites.grow(4) == ["c"]
    assert sites.grow(5) == []
    for round, names in ((3, "ab"), (4, "abc"), (9, "abc")):
        sites.begin(round)
        assert [sites.id_at(place) for place in range(len(sites))] == list(names)
    # The model was made for those who began: what later ones declare does not change the plan.
    assert np.array_equal(sites.schema().classes, [0, 1])
    assert len(Sites(ledger, "run")) == 3

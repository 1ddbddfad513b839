"""``site.toml``: one client out of any source, what it declares, and errors that name the key."""

from __future__ import annotations

import numpy as np
import pytest

from insitu.core.errors import ConfigError, DataError, PlanError
from insitu.federation import site_settings

LOAD = """
import numpy as np
from insitu.data import DataSet

def load(n=10, bad=False):
    x = np.arange(3.0 * n).reshape(n, 3)
    x[0, 0] = np.nan if bad else 0
    return x, np.arange(n) % 2

def wards():
    x, y = load(12)
    return x, y
"""


def site(tmp_path, text):
    (tmp_path / "data.py").write_text(LOAD)
    path = tmp_path / "site.toml"
    path.write_text(text)
    return site_settings.load(path)


def test_all_examples_of_a_source_are_one_client(tmp_path):
    told = site(tmp_path, '[data]\nsource = "data.py:load"\nholdout = 0.3\n')
    population = told.population()
    assert len(population) == 1
    assert told.declared(population) == {"examples": 7, "holdout": 3, "features": [3], "classes": [0, 1]}
    client = population.at(0)
    assert len(client.data) == population.size_at(0) == 7
    assert population.has_holdout()


def test_a_source_takes_arguments(tmp_path):
    told = site(tmp_path, '[data]\nsource = { name = "data.py:load", n = 4 }\n')
    assert told.population().size_at(0) == 4


def test_what_a_site_does_not_share_is_not_declared(tmp_path):
    told = site(tmp_path, '[data]\nsource = "data.py:load"\n[site]\nshare_schema = false\n')
    assert told.declared(told.population()) == {"examples": 10, "holdout": 0, "features": None, "classes": None}


def test_rules_are_read(tmp_path):
    text = (
        '[data]\nsource = "data.py:load"\n[allow]\nalgorithms = ["fedavg"]\nlargest_model = "5MB"\nleast_cohort = 3\n'
    )
    rules = site(tmp_path, text).rules
    assert list(rules.algorithms) == ["fedavg"]
    assert rules.largest_model == 5_000_000
    assert rules.least_cohort == 3
    assert list(rules.code) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", r"\[data\] is missing"),
        ("[data]\n", "source"),
        ('[data]\nsource = "data.py:load"\nholdot = 1\n', "holdout"),
        ('[data]\nsource = "data.py:lod"\n', "load"),
        ('[data]\nsource = "data.py:load"\n[alow]\n', "allow"),
        ('[data]\nsource = "data.py:load"\n[allow]\nkinds = ["shell"]\n', "kinds"),
        ('[data]\nsource = "data.py:load"\n[allow]\nleast_cohort = 0\n', "least_cohort"),
        ('[data]\nsource = "data.py:load"\n[allow]\nlargest_model = "5 apples"\n', "largest_model"),
        ('[data]\nsource = "data.py:load"\n[site]\nproxy = "socks5://x"\n', "proxy"),
        ('allow = 3\n[data]\nsource = "data.py:load"\n', "allow"),
        ('[data]\nsource = { name = "data.py:load", bad = true }\n', "NaN"),
        ('[data]\nsource = "data.py:load"\nclient = "ward 7"\n', "whose"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, named):
    with pytest.raises((ConfigError, DataError, PlanError), match=named):
        site(tmp_path, text).population()


def test_a_source_of_clients_needs_to_know_which(tmp_path):
    (tmp_path / "wards.py").write_text(
        "import numpy as np\nfrom insitu.data import Clients\n"
        "def load():\n    x = np.arange(12.0).reshape(6, 2)\n"
        "    return Clients.by_key(x, np.arange(6) % 2, np.array(['a', 'a', 'b', 'b', 'b', 'b']))\n"
    )
    told = site(tmp_path, '[data]\nsource = "wards.py:load"\nclient = "b"\n')
    population = told.population()
    assert population.size_at(0) == 4
    np.testing.assert_array_equal(population.at(0).data.x[0], [4.0, 5.0])
    with pytest.raises(ConfigError, match="there are 'a', 'b'"):
        site(tmp_path, '[data]\nsource = "wards.py:load"\nclient = "c"\n').population()
    with pytest.raises(ConfigError, match="client = "):
        site(tmp_path, '[data]\nsource = "wards.py:load"\n').population()

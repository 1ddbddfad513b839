"""A trail that was changed anywhere is found out, at the first entry that does not fit."""

import copy
import hashlib

import pytest

from insitu.core.audit import GENESIS, Broken, chained, verify


def trail(count=5):
    entries, before = [], GENESIS
    for seq in range(1, count + 1):
        data = {"name": "ä\n", "n": seq, "deep": [{"x": 0.1}]}
        entries.append(chained({"at": seq + 0.25, "who": "ada", "what": "invited", "data": data}, seq, before))
        before = entries[-1]["hash"]
    return entries


def test_a_hash_is_that_of_the_one_before_and_canonical_json():
    (entry,) = trail(1)
    text = r'{"at":1.25,"data":{"deep":[{"x":0.1}],"n":1,"name":"\u00e4\n"},"seq":1,"what":"invited","who":"ada"}'
    assert entry["hash"] == hashlib.sha256(GENESIS.encode() + text.encode()).hexdigest()
    assert entry["before"] == GENESIS


def test_a_whole_trail_and_any_stretch_of_it_fit():
    entries = trail()
    assert verify([]) is None
    for first in range(5):
        for last in range(first, 6):
            assert verify(entries[first:last]) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("at", 0.0), ("who", "eve"), ("what", "revoked"), ("data", {}), ("hash", "0" * 64), ("before", "0" * 64)],
)
@pytest.mark.parametrize("seq", [2, 4, 5])
def test_a_changed_entry_is_named(name, value, seq):
    entries = trail()
    entries[seq - 1] = {**entries[seq - 1], name: value}
    assert verify(entries).seq == seq


def test_a_number_deep_in_the_data_counts():
    entries = copy.deepcopy(trail())
    entries[2]["data"]["deep"][0]["x"] = 0.2
    found = verify(entries)
    assert found.seq == 3
    assert "entry 3 was changed" in found.why


def test_entries_that_are_missing_swapped_or_made_up_are_named():
    entries = trail()
    assert verify(entries[:1] + entries[2:]) == Broken(3, "entry 3 stands where number 2 is missing")
    assert verify([entries[0], entries[2], entries[1], *entries[3:]]).seq == 3
    forged = chained({"at": 9.0, "who": "eve", "what": "nothing"}, 3, GENESIS)
    assert verify([*entries[:2], forged]) == Broken(
        3, f"entry 3 does not follow the one before it, whose hash is {entries[1]['hash']}"
    )
    assert verify([{**entries[0], "data": float("nan")}]).seq == 1
    first = {**entries[0], "before": entries[1]["hash"]}
    assert verify([first]).seq == 1


def test_what_json_cannot_say_becomes_what_it_can():
    entry = chained({"at": 1, "what": "x", "data": {"n": float("nan"), 3: (1, 2)}}, 1, GENESIS)
    assert entry["data"] == {"n": None, "3": [1, 2]}
    assert (entry["at"], entry["who"]) == (1.0, "")
    assert verify([entry]) is None

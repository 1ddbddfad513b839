"""A federation that is made once: coordinator's folder and two joined sites, of which every test starts a copy."""

from __future__ import annotations

import pytest
from copies import ADDRESS, PLAN, Copy
from processes import SITES, Federation


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    federation = Federation(tmp_path_factory.mktemp("made"), hosts=("localhost", ADDRESS))
    (federation.folder / "plan.toml").write_text(PLAN, encoding="utf-8")
    federation.coordinator()
    for part, name in enumerate(SITES):
        federation.join(part, name)
    federation.close()
    return federation


@pytest.fixture
def federation(made, tmp_path):
    copy = Copy(made, tmp_path / "federation")
    yield copy
    for process in copy.running.values():
        process.kill()
    copy.close()

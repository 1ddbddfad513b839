"""Where the real data are, and clients for many tests."""

from pathlib import Path

import pytest

from insitu.data.files import roots

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def data_root():
    """The folder with the real data sets; without it the tests that read them are skipped."""
    for root in [*roots(), PROJECT.parent / "shared" / "data"]:
        if (root / "heart-disease").is_dir():
            return root
    pytest.skip("the data sets are not on this machine: set INSITU_DATA to the folder that holds them")

"""``federation.toml``: what is written is read again, and what is wrong is named with its cure."""

from __future__ import annotations

import pytest

from insitu.core.errors import ConfigError
from insitu.federation.folder import found
from insitu.federation.settings import Settings, load, new_text


def write(folder, text):
    (folder / "federation.toml").write_text(text, encoding="utf-8")
    return folder


def test_what_init_writes_is_read_again(tmp_path):
    made = Settings(name="my-study", hosts=["localhost", "::1"], port=9000)
    read = load(write(tmp_path, new_text(made)))
    assert read == made
    assert read.urls() == ["https://localhost:9000", "https://[::1]:9000"]


def test_everything_can_be_said(tmp_path):
    read = load(
        write(
            tmp_path,
            'name = "a"\nworkers = 2\naddresses = ["https://one:1", "https://two:2"]\n[store]\nurl = "postgresql://x/y"\n'
            '[blobs]\nurl = "s3://b/c"\n[metrics]\nlisten = "127.0.0.1:9464"\n[log]\nfile = "log"\nlevel = "debug"\n'
            "[runs]\nsites = 3\npatience = 5\nat_once = 2\ngrace = 1.5\n[limits]\nuploads = 4\n",
        )
    )
    assert read.urls() == ["https://one:1", "https://two:2"]
    assert read.workers == 2
    assert (read.store.url, read.blobs.url, read.metrics.listen) == ("postgresql://x/y", "s3://b/c", "127.0.0.1:9464")
    assert (read.runs.sites, read.runs.patience, read.runs.grace, read.limits) == (3, 5.0, 1.5, {"uploads": 4})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "needs the key 'name'"),
        ('name = "a"\nhost = ["x"]', "a federation has no key 'host': did you mean 'hosts'?"),
        ('name = "a"\n[stores]', "has no key 'stores': did you mean 'store'?"),
        ('name = "a"\n[store]\nuri = "x"', r"\[store\]: this table has no key 'uri': did you mean 'url'"),
        ('name = "a"\nstore = "x"', r"\[store\]: expected a table"),
        ('name = "a"\nport = "x"', 'port = "x": expected a whole number'),
        ('name = "a"\nport = 70000', "port=70000 <= 65535"),
        ('name = "a"\nworkers = -1', "0 <= workers=-1 <= 64"),
        ('name = "a"\nworkers = 65', "0 <= workers=65 <= 64: one for each core is plenty"),
        ('name = "a"\nworkers = "two"', 'workers = "two": expected a whole number'),
        ('name = "A b"', "Expected name='A b' to be lower-case letters"),
        ('name = "a"\nhosts = []', "to name the coordinator"),
        ('name = "a"\naddresses = ["http://x"]', "to begin with https://"),
        ('name = "a"\n[metrics]\nlisten = "9464"', "an address and a port, such as"),
        ('name = "a"\n[runs]\nsites = 0', "sites=0 to be a whole number >= 1"),
        ('name = "a"\n[log]\nlevel = "loud"', "level='loud' to be one of"),
        ('name = "a"\nlimits = 3', "limits = 3: expected a table"),
        ("name = ", "federation.toml, line 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, why):
    with pytest.raises(ConfigError, match=why):
        load(write(tmp_path, text))


def test_a_folder_that_is_none(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="`insitu federation init NAME` makes one"):
        load(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="the current directory is no folder of a federation or an operator"):
        found(None)
    with pytest.raises(ConfigError, match="there is no folder"):
        found(tmp_path / "x")
    assert found(write(tmp_path, "")) == tmp_path

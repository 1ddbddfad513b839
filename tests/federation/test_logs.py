"""The log: one object a line whatever a stranger wrote, and nobody waits for a sink that does not take it."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from insitu.federation import logs
from insitu.federation.logs import Log


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_an_object(tmp_path):
    log = Log(tmp_path / "deep" / "log")
    log.info("round committed", run="r", round=3)
    log.close()
    (line,) = read(tmp_path / "deep" / "log")
    assert (line["level"], line["event"], line["run"], line["round"]) == ("info", "round committed", "r", 3)
    assert line["time"].endswith("+00:00")


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred", '{"level": "error"}', "‮", "{{7*7}}; drop table", "\x00"])
def test_a_strangers_text_stays_in_its_line(tmp_path, text):
    log = Log(tmp_path / "log")
    log.warning("refused", site=text)
    log.close()
    raw = (tmp_path / "log").read_bytes()
    assert raw.count(b"\n") == 1
    assert raw.endswith(b"\n")
    assert all(32 <= byte < 127 for byte in raw[:-1])
    assert read(tmp_path / "log")[0]["site"] == text


def test_long_texts_are_cut(tmp_path):
    log = Log(tmp_path / "log")
    log.info("x", why="y" * 100_000)
    log.close()
    assert read(tmp_path / "log")[0]["why"] == "y" * 2000 + "… (100000 characters)"


def test_what_is_below_the_level_is_not_written(tmp_path):
    log = Log(tmp_path / "log", "warning")
    for level in logs.LEVELS:
        log.write(level, level)
    log.close()
    assert [line["level"] for line in read(tmp_path / "log")] == ["warning", "error"]


def test_a_blocked_sink_holds_nobody_up_and_is_told_of_later(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "WAITING", 100)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = Log(pipe)
    began = time.monotonic()
    for i in range(3000):
        log.info("line", number=i, text="x" * 1000)
    assert time.monotonic() - began < 1.0
    assert log.dropped > 1000
    os.set_blocking(reader, True)
    found = b""
    thread = threading.Thread(target=log.close, args=(5.0,))

    def drain():
        nonlocal found
        while b'"last"' not in found:
            found += os.read(reader, 1 << 20)

    draining = threading.Thread(target=drain)
    draining.start()
    while b'"last"' not in found and draining.is_alive():
        log.info("last")  # as soon as there is room for it
        time.sleep(0.01)
    thread.start()
    draining.join(10)
    thread.join(10)
    os.close(reader)
    told = [json.loads(line).get("dropped", 0) for line in found.splitlines()]
    assert sum(told) == log.dropped


def test_a_full_disk_drops_lines_and_raises_nothing():
    log = Log(Path("/dev/full"))
    log.error("does not fit")
    log.close()
    assert log.dropped == 1


def test_a_file_that_was_moved_away_is_made_anew(tmp_path):
    log = Log(tmp_path / "log")
    log.info("one")
    while not (tmp_path / "log").exists() or not (tmp_path / "log").stat().st_size:
        time.sleep(0.005)
    (tmp_path / "log").rename(tmp_path / "old")
    log.reopen()
    log.info("two")
    log.close()
    assert [line["event"] for line in read(tmp_path / "old")] == ["one"]
    assert [line["event"] for line in read(tmp_path / "log")] == ["two"]


def test_pythons_own_log_goes_there_too(tmp_path):
    log = Log(tmp_path / "log")
    logger = logging.getLogger("insitu.test")
    handler = logs.Handler(log)
    logger.addHandler(handler)
    try:
        try:
            raise ValueError("what was wrong\nin two lines")
        except ValueError:
            logger.exception("%s broke", "it")
    finally:
        logger.removeHandler(handler)
    log.close()
    (line,) = read(tmp_path / "log")
    assert (line["level"], line["event"], line["logger"]) == ("error", "it broke", "insitu.test")
    assert line["error"] == "ValueError: what was wrong\nin two lines"
    assert "test_logs.py" in line["trace"]

"""Shakespeare's plays by speaker: predict the next character."""

from __future__ import annotations

from typing import Any

import numpy as np

from insitu.core import checks
from insitu.core.errors import DataError, PlanError
from insitu.data.dataset import DataSet
from insitu.data.files import Files

FILES = Files(
    "tinyshakespeare",
    "https://github.com/karpathy/char-rnn/tree/master/data/tinyshakespeare",
    {"input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"},
)


def shakespeare(
    root: Any = None, *, length: int = 80, target: str = "next", step: int | None = None, test: float = 0.2
) -> DataSet:
    """Windows of what each speaker says, speech after speech; a character is its place in ``classes``.

    The last part of each speaker's text is the test part, and no window reaches over the cut: windows
    overlap, so a random holdout of them (``Clients`` with ``holdout=``) would test on what was learnt.

    Args:
        root: the folder that holds ``tinyshakespeare/``; see :mod:`insitu.data.files`.
        length: the characters of a window. Of the 309 speakers, those with fewer than ``length + 1`` to train
            on have no window and are left out.
        target: ``next``: y [n] is the character after the window; ``sequence``: y [n, length] is the window
            shifted by one character.
        step: how many characters apart windows begin; 10 for ``next`` and ``length`` for ``sequence`` by
            default. x takes ``8 · length / step`` bytes a character of a text of a million.
        test: the fraction of each speaker's characters that is the test part, in [0, 1).

    Returns:
        x int64 [n, length] 0 to 64, y int64, keys text (the speaker's name, as "First Citizen"), ``classes``
        the 65 characters. Rows of one speaker follow each other.

    Raises:
        DataError: the file is absent or damaged, or no speaker says as much as ``length``.
        PlanError: an option is out of range.

    Source: Karpathy (2015), char-rnn; by speaker as in McMahan et al. (2017) and LEAF (Caldas et al. 2018).
    """
    checks.count(length=length)
    checks.one_of(("next", "sequence"), target=target)
    step = checks.count(step=step) if step is not None else (10 if target == "next" else length)
    if checks.probability(test=test) == 1:
        raise PlanError(f"Expected test={test!r} < 1: something must be left to learn from")
    text = FILES.read("input.txt", root).decode()
    letters = sorted(set(text))
    code = np.zeros(ord(letters[-1]) + 1, dtype=np.int64)
    code[[ord(letter) for letter in letters]] = np.arange(len(letters))
    parts: dict[str, list[tuple[str, np.ndarray]]] = {"train": [], "test": []}
    for name, said in sorted(speeches(text).items()):
        codes = code[np.frombuffer(said.encode(), dtype=np.uint8)]
        cut = len(codes) - int(test * len(codes))
        for part, piece in (("train", codes[:cut]), ("test", codes[cut:])):
            if len(piece) > length:
                parts[part].append((name, np.lib.stride_tricks.sliding_window_view(piece, length + 1)[::step]))
    if not parts["train"]:
        raise DataError(f"no speaker says length={length} characters to train on: take shorter windows")
    x, y, keys = _stack(parts["train"], target)
    held = _stack(parts["test"], target) if parts["test"] else (None, None, None)
    return DataSet("shakespeare", x, y, keys, *held, classes=tuple(letters))


def speeches(text: str) -> dict[str, str]:
    """What each speaker says. A speech is a block between blank lines; its first line is name and colon."""
    said: dict[str, list[str]] = {}
    for block in text.strip().split("\n\n"):
        name, _, speech = block.strip("\n").partition("\n")
        said.setdefault(name.rstrip(":"), []).append(speech)
    return {name: "\n".join(spoken) for name, spoken in said.items()}


def _stack(windows: list[tuple[str, np.ndarray]], target: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(x, y, keys)`` of windows [., length + 1] by speaker."""
    x = np.concatenate([window[:, :-1] for _, window in windows])
    y = np.concatenate([window[:, 1:] if target == "sequence" else window[:, -1] for _, window in windows])
    return x, y, np.repeat([name for name, _ in windows], [len(window) for _, window in windows])

"""A small GPT learns Shakespeare letter by letter on two workers: one TOML file a way of working together.

The files in ``char_gpt/`` differ in their method alone. Each worker has half of the windows; a step is a batch of 16
windows of 64 letters on every worker (eight on each of gossip's four nodes). ``examples/char_gpt/diloco.toml`` and the
others also run by themselves: ``insitu run examples/char_gpt/diloco.toml``.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import insitu
from insitu.config import load
from insitu.core.errors import DataError
from insitu.data import DataSet
from insitu.data.shakespeare import shakespeare

HERE = Path(__file__).parent / "char_gpt"
WAYS = ("synchronous", "eight_bit", "local_sgd", "diloco", "streaming_diloco", "gossip")
LENGTH, LETTERS = 64, 65


class Block(nn.Module):
    """Causal attention, then a perceptron, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        parts = self.attend(self.before_attention(x)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.merge(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.narrow(F.gelu(self.widen(self.before_perceptron(x))))


class CharGPT(nn.Module):
    """Letters [n, 64] to the next letter's logits [n, 64, 65]."""

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(LETTERS, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, LETTERS)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A place for each window of the batch: so the same code serves one worker and several side by side.
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape)
        return self.head(self.last(self.blocks(self.letter(x) + self.place(places))))


def windows(root: str | None = None, test: int = 512) -> DataSet:
    """Windows of Shakespeare with the next letters as labels, ``test`` of them held out; without the file, of a text
    that is made up by rule, so that everything runs (its losses mean nothing)."""
    try:
        found = shakespeare(root, length=LENGTH, target="sequence", test=0.1)
    except DataError:
        found = made_up()
    some = np.random.default_rng(0).permutation(len(found.x_test))[:test]
    return DataSet(found.name, found.x, found.y, None, found.x_test[some], found.y_test[some], found.classes)


def made_up(words: int = 40_000) -> DataSet:
    """Sentences of a few hundred invented words, the frequent ones far more often than the rare."""
    generator = np.random.default_rng(7)
    vocabulary = [
        "".join(generator.choice(list("aeioubdlmnrst"), size=length)) for length in generator.integers(2, 8, 300)
    ]
    drawn = generator.zipf(1.5, size=words) % len(vocabulary)
    codes = np.frombuffer(" ".join(vocabulary[i] for i in drawn).encode(), dtype=np.uint8)
    letters, codes = np.unique(codes, return_inverse=True)
    rows = np.lib.stride_tricks.sliding_window_view(codes.astype(np.int64), LENGTH + 1)[::LENGTH]
    cut = len(rows) * 9 // 10
    x, y = rows[:, :-1], rows[:, 1:]
    names = tuple(chr(letter) for letter in letters) + ("",) * (LETTERS - len(letters))
    return DataSet("made up", x[:cut], y[:cut], None, x[cut:], y[cut:], names)


def train(way: str, *overrides: str, engine: str | None = None) -> insitu.Result:
    """One run as its file says it; overrides such as ``"run.seed=1"`` change that."""
    built = load(HERE / f"{way}.toml", overrides).build()
    options = {**built.options, "store": None, "engine": engine or built.options["engine"]}
    return insitu.run(built.plan, built.clients, evaluate=built.evaluate, observers=(), **options)


def main(ways: tuple[str, ...] = WAYS, *overrides: str) -> dict[str, insitu.Result]:
    found = {}
    for way in ways:
        found[way] = result = train(way, *overrides)
        row = result.history[-1]
        sent = sum(r["bytes_up"] + r["bytes_down"] for r in result.history)
        print(f"{way:17s} {result.rounds:5d} rounds, loss {row['loss']:.3f}, {sent / 2**20:8.1f} MiB", flush=True)
    return found


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or WAYS)

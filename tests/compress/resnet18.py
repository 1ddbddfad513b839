"""The shapes of ResNet-18 for CIFAR-10, as PowerSGD's paper trained it: 11,173,962 parameters."""

from __future__ import annotations


def _norm(channels: int) -> list[tuple[int, ...]]:
    return [(channels,), (channels,)]


def shapes() -> list[tuple[int, ...]]:
    """Convolutions [out, in, h, w], norms and biases [n], the last layer [10, 512]."""
    found: list[tuple[int, ...]] = [(64, 3, 3, 3), *_norm(64)]
    before = 64
    for channels in (64, 128, 256, 512):
        for block in range(2):
            found += [(channels, before, 3, 3), *_norm(channels), (channels, channels, 3, 3), *_norm(channels)]
            if block == 0 and before != channels:
                found += [(channels, before, 1, 1), *_norm(channels)]
            before = channels
    return [*found, (10, 512), (10,)]

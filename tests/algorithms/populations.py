"""Populations for tests of methods."""

from __future__ import annotations

from insitu.core.types import Schema


class Raw:
    """A population of clients as they are: nothing is checked on the way in."""

    def __init__(self, *clients):
        self.clients = clients

    def __len__(self):
        return len(self.clients)

    def id_at(self, place):
        return self.clients[place].id

    def at(self, place):
        return self.clients[place]

    def size_at(self, place):
        return len(self.clients[place].data)

    def has_holdout(self):
        return False

    def schema(self):
        return Schema()

"""The book of calls: whose chunks are needed, and until when."""

from types import SimpleNamespace

from insitu.core.federation import CallKey
from insitu.engines.https.calls.book import Book
from insitu.engines.https.calls.shelf import Shelf


def test_a_chunk_that_comes_when_its_round_is_forgotten_is_needed_by_nobody() -> None:
    shelf = Shelf(SimpleNamespace(remove=lambda digests: None))
    book, key = Book(shelf), CallKey("run", 1, "train", 0)
    call = SimpleNamespace(call=SimpleNamespace(key=key, message={}), tasks={"berlin": {"task": "t"}}, end=lambda: None)
    book.add(call, [])
    shelf.begin("early")
    book.brings(call, "berlin", ["early"])
    shelf.end("early")
    assert shelf.used() == {"early"}
    shelf.begin("late")
    book.drop(key)
    book.brings(call, "berlin", ["late"])
    shelf.end("late")
    assert shelf.used() == set()
    assert shelf.clear() == 2

"""Bounded caches."""

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar


V = TypeVar("V")


class Cache(Generic[V]):
    """A bounded dictionary: what was used longest ago goes first. Safe under threads."""

    def __init__(self, size: int):
        self.size = size
        self.items: collections.OrderedDict[Hashable, V] = collections.OrderedDict()
        self.lock = threading.RLock()
        self.making: dict[Hashable, threading.RLock] = {}

    def get(self, key: Hashable) -> V | None:
        found = self.items.get(key)
        if found is not None and len(self.items) > self.size // 2:
            with self.lock:  # the order only matters once something may have to go
                if key in self.items:
                    self.items.move_to_end(key)
        return found

    def add(self, key: Hashable, value: V) -> V:
        """Keeps a value, or returns the one that another thread was faster to keep."""
        with self.lock:
            value = self.items.setdefault(key, value)
            while len(self.items) > self.size:
                self.items.popitem(last=False)
        return value

    def replace(self, key: Hashable, value: V) -> None:
        """Keeps a value in the place of the one that is there."""
        with self.lock:
            self.items.pop(key, None)
            self.add(key, value)

    def make(self, key: Hashable, make: Callable[[], tuple[V, bool]]) -> V:
        """The value of a key, made if it is not there: by one of several threads, for which the
        others wait.

        **Arguments:**

        - `make`: returns the value, and whether it may be kept.
        """
        with self.lock:
            turn = self.making.setdefault(key, threading.RLock())
        try:
            with turn:
                found = self.get(key)
                if found is not None:
                    return found
                found, may_be_kept = make()
                return self.add(key, found) if may_be_kept else found
        finally:
            with self.lock:
                self.making.pop(key, None)

    def discard(self, key: Hashable) -> None:
        with self.lock:
            self.items.pop(key, None)

    def __len__(self) -> int:
        return len(self.items)

    def __reduce__(self) -> Any:
        return type(self), (self.size,)  # copies have nothing in them

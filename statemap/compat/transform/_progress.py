"""A progress bar for loops, by tqdm."""

import importlib
from collections.abc import Callable
from typing import Any

import jax

from .._frames import is_cell


class ProgressBar:
    """Shows how far a loop has come, with [tqdm](https://tqdm.github.io), which takes the other
    `kwargs`: [brainstate's `ProgressBar`](https://brainstate.readthedocs.io). It is updated every
    `freq` steps, or `count` times in all (20). `desc` is a text; or a format and a function, from
    `{"i": ..., "carry": ..., "y": ...}` to the dictionary that fills it, which may read cells.
    """

    def __init__(
        self, freq: int | None = None, count: int | None = None, desc: Any = None,
        print_freq: int | None = None, **kwargs: Any,
    ):  # fmt: skip
        freq = freq if freq is not None else print_freq
        if freq is not None and count is not None:
            raise ValueError("A ProgressBar takes `freq` or `count`, not both.")
        for name, value in (("freq", freq), ("count", count)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` is a positive integer, not {value!r}.")
        if isinstance(desc, (tuple, list)) and len(desc) != 2:
            raise ValueError(f"`desc` is a text, or a format and a function, not {desc!r}.")
        text, fill = desc if isinstance(desc, (tuple, list)) else (desc, repr)
        if not isinstance(text, str | None) or not callable(fill):
            raise TypeError(f"`desc` is a text, or a format and a function, not {desc!r}.")
        self.print_freq: int | None = freq
        self.print_count: int | None = count
        self.desc: Any = desc
        self.kwargs: dict[str, Any] = {k: v for k, v in kwargs.items() if k not in _OURS}

    def init(self, n: int) -> Callable[..., None]:
        """What a loop of `n` steps calls with the number of each, and by name with what `desc`
        may show.
        """
        try:
            tqdm = importlib.import_module("tqdm").tqdm
        except ImportError:
            raise ImportError("`pbar` draws with tqdm: pip install tqdm.") from None
        freq = self.print_freq or max(n // (self.print_count or 20), 1)
        text, fill = self.desc if isinstance(self.desc, (tuple, list)) else (self.desc, None)
        bars: list[Any] = []

        def show(i: Any, shown: dict[str, Any]) -> None:
            if i == 0:
                bars[:] = [tqdm(total=n, **self.kwargs)]
            if text is not None:
                bars[0].set_description(text.format(**shown) if fill else text)
            done = int(i) + 1
            if done % freq == 0 or done == n:
                bars[0].update(done - bars[0].n)
            if done == n:
                bars.pop().close()

        def run(i: Any, **data: Any) -> None:
            shown = fill({"i": i, **data}) if fill else {}
            if not isinstance(shown, dict):
                raise TypeError(f"The function in `desc` returns a dictionary, not {shown!r}.")
            shown = {k: v.value if is_cell(v) else v for k, v in shown.items()}
            now = (i == 0) | ((i + 1) % freq == 0) | (i == n - 1)
            tell = lambda: jax.debug.callback(show, i, shown, ordered=True)
            jax.lax.cond(now, tell, lambda: None)

        return run


_OURS = ("total", "mininterval", "maxinterval", "miniters")  # of tqdm's arguments


def with_progress(body: Callable, pbar: Any, steps: int) -> Callable:
    """The body of a scan that updates a bar, ours or brainstate's. It carries the number of the
    step as well.
    """
    is_number = isinstance(pbar, int) and not isinstance(pbar, bool)
    init = getattr(ProgressBar(freq=pbar) if is_number else pbar, "init", None)
    if init is None:
        raise TypeError(f"`pbar` is a ProgressBar or a number of steps, not {pbar!r}.")
    show = init(steps)

    def counted(carry: tuple[Any, Any], x: Any) -> tuple[Any, Any]:
        i, carry = carry
        carry, y = body(carry, x)
        show(i, carry=carry, y=y)
        return (i + 1, carry), y

    return counted

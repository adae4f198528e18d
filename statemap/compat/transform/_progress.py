"""A progress bar for loops, by tqdm."""

import importlib
from collections.abc import Callable
from typing import Any

import jax


class ProgressBar:
    """Shows how far a loop has come, with [tqdm](https://tqdm.github.io).

    ```python
    import jax.numpy as jnp
    from statemap.compat import transform

    bar = transform.ProgressBar(freq=25, desc="steps")
    transform.for_loop(lambda x: x + 1, jnp.arange(100), pbar=bar)
    ```
    """

    def __init__(
        self,
        freq: int | None = None,
        count: int | None = None,
        desc: str | tuple[str, Callable[[dict[str, Any]], Any]] | None = None,
        print_freq: int | None = None,
        **kwargs: Any,
    ):
        """**Arguments:**

        - `freq`: it is updated every so many steps.
        - `count`: it is updated so many times in all. By default, 20 times.
        - `desc`: what it says; or a format and a function from `{"i": ..., "carry": ...,
            "y": ...}` to the dictionary that fills it.
        - `print_freq`: an older name of `freq`.
        - `kwargs`: for `tqdm.tqdm`.
        """
        freq = freq if freq is not None else print_freq
        if freq is not None and count is not None:
            raise ValueError("A ProgressBar takes `freq` or `count`, not both.")
        for name, value in (("freq", freq), ("count", count)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` is a positive integer, not {value!r}.")
        self.freq = freq
        self.count: int | None = 20 if freq is None and count is None else count
        self.desc = desc
        self.kwargs = kwargs


def with_progress(body: Callable, pbar: ProgressBar | int, steps: int) -> Callable:
    """The body of a scan that updates a bar."""
    if isinstance(pbar, int) and not isinstance(pbar, bool):
        pbar = ProgressBar(freq=pbar)
    if not isinstance(pbar, ProgressBar):
        raise TypeError(f"`pbar` is a ProgressBar or a number of steps, not {pbar!r}.")
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        raise ImportError("`pbar` draws with tqdm: pip install tqdm.") from None
    freq = pbar.freq or max(steps // (pbar.count or 1), 1)
    text, fill = pbar.desc if isinstance(pbar.desc, tuple) else (pbar.desc, None)
    bars: list[Any] = []
    done = 0

    def show(shown: dict[str, Any]) -> None:
        nonlocal done
        if not bars:
            bars.append(tqdm(total=steps, **pbar.kwargs))
        done += 1
        if done % freq == 0 or done == steps:
            if text is not None:
                bars[0].set_description(text.format(**shown) if fill else text)
            bars[0].update(done - bars[0].n)
        if done == steps:
            bars.pop().close()
            done = 0

    def counted(carry: Any, x: Any) -> tuple[Any, Any]:
        carry, y = body(carry, x)
        shown = fill({"i": done, "carry": carry[1], "y": y}) if fill else {}
        jax.debug.callback(show, shown, ordered=True)
        return carry, y

    return counted

"""What stands for a function that is left out, so that a decorator is returned."""

from typing import Any


class Missing:
    def __repr__(self) -> str:
        return "<missing>"


MISSING: Any = Missing()


def left_out(fun: Any) -> bool:
    """Whether a function is left out, also in brainstate's words: `brainstate.typing.Missing()`."""
    kind = fun if isinstance(fun, type) else type(fun)
    return kind.__name__.lstrip("_") == "Missing"

"""Donation: a context whose memory a call has taken."""

import threading
from collections.abc import Sequence
from typing import Any

import jax

from ._errors import DonatedStatesError
from ._states import States


class _Donated(tuple):
    """Stands where the values of a context were whose memory a mapping took."""

    def _refuse(self, *_: Any) -> Any:
        raise DonatedStatesError(
            "This context was given to a mapping with `donate=True`, which has reused its "
            "memory.\n"
            "Wrong:  out, new = step(states, x); states[key]\n"
            "Right:  out, states = step(states, x); states[key]\n"
            "To keep the old context as well, leave `donate` off."
        )

    __getitem__ = __iter__ = __len__ = _refuse


_DONATED = _Donated()
_claiming = threading.Lock()
_set_values = States.__dict__["_values"].__set__


def claim(states: States) -> Sequence[Any]:
    """The values of a context whose memory a call takes. From now on every use of the context is
    an error that says why; of several threads, one gets the values.
    """
    with _claiming:
        values = states._values
        if type(values) is _Donated:
            values[0]
        _set_values(states, _DONATED)
    return values


def disclaim(states: States, values: Sequence[Any]) -> None:
    """Gives a context its values back, after a call that failed, if their memory is still there."""
    if not any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(list(values))):
        _set_values(states, values)

"""Labels by filter, for optimisers that treat states differently."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from ._filters import Filter, Predicate, to_predicate
from ._slots import Slots
from ._state_axes import warn_idle


Labels = Mapping[Filter, Any] | Iterable[tuple[Filter, Any]]

_EXAMPLE = (
    'Wrong:  states.labels({"adam": sm.ParamState})\n'
    'Right:  states.labels({sm.ParamState: "adam", ...: "frozen"})\n'
    "With filters that can't be keys, such as lists, give pairs: "
    'states.labels([([model.w, model.b], "adam"), (..., "frozen")])'
)


def parse_labels(labels: Any, default: Any) -> tuple[list[Predicate], list[Any]]:
    """The predicates and labels of a mapping from filters to labels, or of pairs.

    **Raises:**

    `TypeError` if it is neither, or something in the place of a label is none.
    """
    is_several = isinstance(labels, Iterable) and not isinstance(labels, str)
    pairs = list(labels.items() if isinstance(labels, Mapping) else labels) if is_several else []
    if not is_several or any(not isinstance(p, tuple) or len(p) != 2 for p in pairs):
        raise TypeError(
            f"Labels are a mapping from filters to labels, or pairs of both, not {labels!r}.\n"
            + _EXAMPLE
        )
    given = [label for _, label in pairs]
    for label in given if default is None else [*given, default]:
        if not _is_label(label):
            raise TypeError(
                f"{label!r} is no label, which is a string, a number or a bool.\n{_EXAMPLE}"
            )
    return [to_predicate(filter) for filter, _ in pairs], given


def _is_label(x: Any) -> bool:
    """Whether optax can tell one label from another: a hashable leaf, and none that is a filter."""
    is_leaf = jax.tree_util.all_leaves([x]) and not isinstance(x, jax.Array)
    return is_leaf and x is not ... and not callable(x) and getattr(x, "__hash__", None) is not None


def label_values(
    slots: Slots, values: Sequence[Any], labels: Labels, default: Any
) -> tuple[Any, ...]:
    """The values of a context with a label in the place of each array.

    **Raises:**

    `ValueError` if a state matches none of the filters and there is no default.
    """
    predicates, given = parse_labels(labels, default)
    found = slots.first_matching(predicates, values)
    if None in found and default is None:
        lost = [f"`{n}`" for n, k in zip(slots.names(), found) if k is None]
        raise ValueError(
            f"No filter matches {', '.join(lost)}, which would have no label. Let the last "
            "filter be `...` to take the rest, or give `default=`."
        )
    states = slots.states(values)
    for k, predicate in enumerate(predicates if states else []):
        if k not in found and not any(slots.matching(predicate, states)):
            warn_idle(predicate, slots, "in `labels`")
    own = [default if k is None else given[k] for k in found]
    label = lambda value, own: jax.tree.map(lambda _: own, value)
    return tuple(map(label, values, own))

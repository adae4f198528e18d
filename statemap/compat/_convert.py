"""Between cells and contexts: how code is ported piece by piece."""

from collections.abc import Callable
from typing import Any

import jax

from .. import _state as core
from .._foreign import described, find_foreign, library, way_in
from .._slots import collect, path_order
from .._states import assemble, States
from .._values import dotted, Path
from .._watch import reach
from ._discover import Discovery
from ._errors import TraceContextError
from ._frames import Frame, in_turn, peek, Stream, streams, take_turn, write_all
from ._lift import run
from .random._keys import is_typed


# By the names of the classes of cells, which brainstate's own have, too.
_KINDS = {
    name: getattr(core, name)
    for name in (
        *("RandomState", "ParamState", "HiddenState", "NonBatchState", "ShortTermState"),
        *("BatchState", "LongTermState", "State"),
    )
}


def to_functional(target: Any) -> tuple[Callable[..., tuple[Any, States]], States]:
    """A function of cells as a pure function of a context, for the functional core and for JAX's
    own transforms; [the page on brainstate](../brainstate.md#port-piece-by-piece) shows it in use.

    **Arguments:**

    - `target`: a `Module`, or another function that uses cells; or a pytree of cells.

    **Returns:**

    `(pure_fn, states)`. `states` is a [`statemap.States`][] with the values of the cells, under
    the paths at which they are found, and of `random.DEFAULT`. `pure_fn(states, *args, **kwargs)`
    returns `(out, states)`. For a pytree of cells it is `pure_fn(states, fn, *args, **kwargs)`,
    with a function `fn` that uses them.

    **Raises:**

    `ValueError` for a cell with several tags, `TypeError` for what the installed brainstate has
    made, which `statemap.bridge` brings in. `pure_fn` raises a `TraceContextError` if a cell is
    used that the context does not have.
    """
    _refuse_installed(target)
    found = _find(target)
    names = [cell.name for cell in found.values()]
    made = {}
    for path, cell in found.items():
        if len(cell.tag or ()) > 1:
            raise ValueError(
                f"The {cell.label} has the tags {sorted(cell.tag or ())}; a state of a context has "
                "one. Keep one of them."
            )
        kind = next(_KINDS[c.__name__] for c in type(cell).__mro__ if c.__name__ in _KINDS)
        name = cell.name if names.count(cell.name) == 1 else None
        made[path] = kind(peek(cell), name=name, tag=next(iter(cell.tag or ()), None))
    states = assemble(collect(made.items(), None))

    def pure(states: Any, *args: Any, **kwargs: Any) -> tuple[Any, States]:
        if not isinstance(states, States):
            raise TypeError(
                f"The pure function takes the context first, not a `{type(states).__name__}`.\n"
                "Wrong:  step(x)\n"
                "Right:  out, states = step(states, x)"
            )
        values = [_to_cell(cell, states[path]) for path, cell in found.items()]
        frame = Frame(list(found.values()), values)
        fn, args = (target, args) if callable(target) else (args[0], args[1:])
        out, new = run(fn, frame, *args, **kwargs)
        if frame.late:
            raise TraceContextError(
                f"The function uses a {frame.late[0].label} that is not in the context. If it was "
                "made after `to_functional` was called (by `init_all_states`, say), call that "
                "afterwards; if `to_functional` could not find it, give it the cells: "
                "`to_functional([...])`."
            )
        paths = {cell: path for path, cell in found.items()}
        return out, states.update({paths[c]: value for c, value in zip(frame.written, new)})

    pure.__name__ = getattr(target, "__name__", type(target).__name__)
    return pure, states


@in_turn
def from_functional(target: Any, states: States) -> None:
    """Writes the values of a context to the cells of `target`, which
    [`statemap.compat.to_functional`][] made it of: to all, or if one can't be written to none.

    **Raises:**

    `ValueError` if the context has a state for which there is no cell.
    """
    found = _find(target)
    if missing := [dotted(path) for path, _ in states.items() if path not in found]:
        raise ValueError(
            f"The context has `{missing[0]}`, for which there is no cell. There are: "
            f"{', '.join(map(dotted, found))}."
        )
    cells = [found[path] for path, _ in states.items()]
    take_turn()  # else a draw that is going on would overwrite the key
    write_all(cells, [_to_cell(c, states[path]) for c, (path, _) in zip(cells, states.items())])


def _find(target: Any) -> dict[Path, Any]:
    """The cells by the first of their paths."""
    discovery = Discovery(target)
    found: dict[Path, Any] = {}
    for cell, paths in discovery.paths.items():
        free = [path for path in paths if path and path not in found]
        found[free[0] if free else (type(cell).__name__, len(found))] = cell
    if streams[-1] not in discovery.paths:
        found["random", "DEFAULT"] = streams[-1]
    return dict(sorted(found.items(), key=lambda item: path_order(item[0])))


def _refuse_installed(target: Any) -> None:
    """Refuses what brainstate itself has made, and a function that uses it: the shim would find
    none of its states.
    """
    x, name, how = find_foreign(target), "module", "was given"
    if x is None and callable(target):
        held = reach(target)
        own = [root for root in held.roots if library(root.value) == "brainstate"] if held else []
        if own:
            name, x, _ = own[0]
            how = f"was given a function that uses `{name}`,"
    if x is not None:
        then = "out, states = sm.vmap2(net)(states, x)"
        raise TypeError(
            f"`to_functional` {how} {described(x)}, whose states are no cells of the shim, so that "
            "they would not be found. The bridge brings it in.\n"
            f"Wrong:  step, states = compat.to_functional({name})\n{way_in(x, name, then)}"
        )


def _to_cell(cell: Any, value: Any) -> Any:
    """A value of a context as the cell has it: a key perhaps as its two words."""
    if isinstance(cell, Stream):
        return value if is_typed(peek(cell)) else jax.random.key_data(value)
    return value

"""Foreign objects that a function reaches, as they were when it was traced: a lane that writes to
one is refused, and so is what has traced one that has changed since.
"""

import contextlib
import operator
import types
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.core import Tracer

from ._exact import by_identity
from ._foreign import classes, described, given_to, held_by, library, one_level, Root, way_in
from ._jax import is_base_trace
from ._plain import changes_in_place, contents, fields_of
from ._values import function_name


# What libraries keep in their objects for themselves: private in flax (0.12.8) and in brainstate
# (0.5.4, 0.6.0). A name that has gone does no harm; a new one makes what is unchanged look changed.
_HIDDEN = {
    "_pytree__state",
    "_pytree__nodes",
    "_been_writen",
    "_level",
    "_source_info",
    "_trace_state",
    "_hooks_manager",
}
_VALUES = ("_raw_value", "_value")  # of a variable, and of a state


class Reach:
    """Foreign objects as they are now: to be compared with what they are later, and put back."""

    def __init__(self, roots: Iterable[Root], fn: Callable | None = None):
        """**Arguments:**

        - `roots`: the objects.
        - `fn`: the function that holds them, if names may be bound to others later.
        """
        self.roots, self._fn, self._known = list(roots), fn, classes()
        self.paths: dict[int, str] = {}  # of objects, by id
        self.holds_tracer = False
        # What may change, and what was in it.
        self._dicts: list[tuple[dict, dict]] = []
        self._lists: list[tuple[list, list]] = []
        self._sets: list[tuple[set, set]] = []
        self._numbers: list[tuple[np.ndarray, np.ndarray]] = []
        self._slots: list[tuple[Any, str, Any]] = []
        self._cells: list[Any] = []  # states of brainstate
        self._kept: list[Any] = []  # so that no id is used again
        facts: list[tuple[str, Any]] = []
        for root in self.roots:
            self._note(root.name, root.value, facts)
        # All that a lane can see, by path; what is no plain data by identity, and weakly.
        self.facts = tuple(facts)

    def _note(self, path: str, x: Any, facts: list[tuple[str, Any]]) -> None:
        items = self._items(path, x)
        if items is None:
            leaves = [x] if isinstance(x, jax.Array) else jax.tree.leaves(x)
            self.holds_tracer |= any(isinstance(leaf, Tracer) for leaf in leaves)
            facts.append((path, by_identity(x, None)))
            if isinstance(x, np.ndarray) and x.flags.writeable and not x.dtype.hasobject:
                self._numbers.append((x, x.copy()))
                facts.append((path, (x.shape, str(x.dtype), x.tobytes())))
        elif id(x) in self.paths:
            facts.append((path, self.paths[id(x)]))
        else:
            self.paths[id(x)] = path
            self._kept.append(x)
            facts.append((path, by_identity(type(x), None)))
            for where, item in sorted(items, key=operator.itemgetter(0)):
                self._note(where, item, facts)

    def _items(self, path: str, x: Any) -> list[tuple[str, Any]] | None:
        """What a foreign object or a container holds, with paths; None for a leaf. What can be put
        back is noted.
        """
        if isinstance(x, (list, tuple)):
            if isinstance(x, list):
                self._lists.append((x, list(x)))
            return [(f"{path}[{i}]", item) for i, item in enumerate(x)]
        if isinstance(x, dict):
            self._dicts.append((x, dict(x)))
            return [(f"{path}[{k!r}]", item) for k, item in x.items()]
        if isinstance(x, set):
            self._sets.append((x, set(x)))
            return [(f"{path}{{{item!r}}}", item) for item in x]
        if not isinstance(x, self._known):
            if fields_of(x) is None:
                return None
            self._dicts.append((vars(x), dict(vars(x))))
            return [(f"{path}.{k}", item) for k, item in vars(x).items()]
        if "_value" in getattr(x, "__dict__", ()):
            self._cells.append(x)
            _look_at([x])
        slots: dict[str, Any] = {}
        if isinstance(getattr(type(x), "_raw_value", None), types.MemberDescriptorType):
            slots = {k: getattr(x, k) for k in ("_raw_value", "_var_metadata")}
        elif not hasattr(x, "__dict__"):  # a variable of nnx that JAX manages (`hijax=True`)
            slots = {"_leaves": getattr(x, "_leaves", None)}
        self._slots += [(x, k, value) for k, value in slots.items()]
        own = getattr(x, "__dict__", {})
        self._dicts.append((own, dict(own)))
        shown = {k: v for k, v in {**own, **slots}.items() if k not in _HIDDEN}
        return [(_attribute(path, k), item) for k, item in shown.items()]

    def is_same(self) -> bool:
        """Whether all is the very same as it was: a quick look, which may say no of equals."""
        _look_at(self._cells)
        return (
            (self._fn is None or self._is_bound(self._fn))
            and all(getattr(x, k) is old for x, k, old in self._slots)
            and all(_same(now.values(), old.values()) for now, old in self._dicts)
            and all(_same(now, old) for now, old in self._lists)
            and all(now == old for now, old in self._sets)
            and all(_same_numbers(now, old) for now, old in self._numbers)
        )

    def _is_bound(self, fn: Callable) -> bool:
        now = [root.value for root in held_by(fn, self._known) if not root.is_bound]
        return _same(now, [root.value for root in self.roots])

    def put_back(self) -> None:
        for x, k, old in self._slots:
            if getattr(x, k) is not old:
                object.__setattr__(x, k, old)
        for now, old in self._dicts:
            for k in now.keys() - old.keys():
                del now[k]
            now.update(old)
        for now, old in self._lists:
            now[:] = old
        for now, old in self._sets:
            now.clear()
            now.update(old)
        for now, old in self._numbers:
            if not _same_numbers(now, old):
                np.copyto(now, old)

    def root_of(self, path: str) -> Root | None:
        """The object that a path leads into."""
        found = [root for root in self.roots if path.startswith(root.name)]
        return max(found, key=lambda root: len(root.name), default=None)


def _look_at(cells: list[Any]) -> None:
    """Reads states of brainstate inside a trace. A transform of brainstate's puts a tracer in the
    place of a value that is read first: before the lane, so that it is no write of the lane's, and
    so that brainstate knows what its own program depends on.
    """
    if cells and not is_base_trace():
        for x in cells:
            with contextlib.suppress(Exception):  # what can't be read, the lane finds out
                _ = x.value


def _attribute(path: str, key: str) -> str:
    if key in _VALUES:
        return path
    return f"{path}[{key}]" if key.isdigit() else f"{path}.{key}"


def _same(now: Any, old: Any) -> bool:
    return len(now) == len(old) and all(map(operator.is_, now, old))


def _same_numbers(now: np.ndarray, old: np.ndarray) -> bool:
    return now.shape == old.shape and now.dtype == old.dtype and now.tobytes() == old.tobytes()


def _difference(old: tuple, new: tuple) -> str | None:
    """The first path at which facts differ."""
    if old == new:
        return None
    pairs: Any = zip((*old, *[None] * len(new)), (*new, *[None] * len(old)))
    before, after = next((a, b) for a, b in pairs if a != b)
    if before is None or after is not None and before[0] in dict(new):
        return after[0]
    return before[0]


def reach(fn: Callable) -> Reach | None:
    """The foreign objects that a function holds and that are compiled in, as they are now; None if
    there are none.
    """
    known = classes()
    roots = [root for root in held_by(fn, known) if not root.is_bound] if known else []
    return Reach(roots, fn) if roots else None


def facts_of(objects: Iterable[Any]) -> tuple | None:
    """What a lane sees of the foreign ones among some objects; None if there are none."""
    known = classes()
    roots = [root for x in objects for root in one_level("", x, known)] if known else []
    return Reach(roots).facts if roots else None


def static_contents(trees: Iterable[Any]) -> tuple:
    """What lists, dictionaries and settings hold that are static in the foreign objects among some
    pytrees. JAX compares them with themselves, as its treedefs hold the very objects.
    """
    known = classes()
    if not known:
        return ()
    stop, seen, found = (*known, jax.Array, np.ndarray), set(), []

    def look(path: str, x: Any) -> None:
        if id(x) in seen:
            return
        seen.add(id(x))
        if isinstance(x, (list, tuple)):
            items = enumerate(x)
        elif isinstance(x, dict):
            items = x.items()
        else:
            items = getattr(x, "__dict__", {}).items()
        for k, item in list(items):
            if k in _HIDDEN or k in _VALUES:
                continue
            where = f"{path}.{k}"
            if changes_in_place(item, stop):
                found.append((where, contents(item)))
            elif isinstance(item, (*known, list, tuple, dict)):
                look(where, item)

    is_known = lambda x: isinstance(x, known)
    for tree in trees:
        if not isinstance(tree, (jax.Array, np.ndarray)):
            nodes = jax.tree.leaves(tree, is_leaf=is_known)
            for i, x in enumerate(nodes):
                if is_known(x):
                    look(str(i), x)
    return tuple(found)


def refuse_changed(old: tuple, now: Reach | None, name: str, again: str) -> None:
    """Refuses a call of what has traced foreign objects that have changed since.

    **Arguments:**

    - `old`: the facts when they were traced.
    - `name`, `again`: of the function, and the code that traces it anew.

    **Raises:**

    `TypeError` that names what has changed.
    """
    path = _difference(old, () if now is None else now.facts)
    if path is None:
        return
    root = None if now is None else now.root_of(path)
    shown = "" if root is None else "\n" + way_in(root.value, root.name)
    raise TypeError(
        f"`{path}` has changed since `{name}` was traced, which reaches it from outside: what it "
        "was is compiled in, so that the result would be that of before. What changes is a state, "
        f"which the bridge makes of it. What changes once: make a new mapping, `{again}`, which is "
        f"traced anew.{shown}"
    )


Advice = Callable[[str, Root], str]


def run_watched(
    fn: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    advice: Advice | None = None,
    through: Callable[[Callable, tuple, dict[str, Any]], Any] | None = None,
) -> Any:
    """`fn(*args, **kwargs)`, in a trace, with an eye on the foreign objects that it reaches and
    that it is given: on errors they are as before.

    **Arguments:**

    - `args`: the states first.
    - `advice`: what to do, given the name of the function, and the object; by default the bridge.
    - `through`: what calls the function, if not Python: given the function and its arguments.

    **Raises:**

    `TypeError` if the function has written to one of them. What a library itself raises of such a
    write gets a note.
    """
    run = (lambda: fn(*args, **kwargs)) if through is None else lambda: through(fn, args, kwargs)
    known = classes()
    if not known:
        return run()
    given = given_to(fn, (None, *args[1:]), kwargs, known)
    before = Reach([*held_by(fn, known), *given])
    if not before.roots:
        try:
            return run()
        except BaseException as error:
            _explain(error, before, fn, advice or _bridge)
            raise
    try:
        out = run()
    except BaseException as error:
        before.put_back()
        _explain(error, before, fn, advice or _bridge)
        raise
    if not before.is_same():
        path = _difference(before.facts, Reach(before.roots).facts)
        if path is not None:
            before.put_back()
            _refuse_written(path, before, fn, advice or _bridge)
    return out


def _refuse_written(path: str, before: Reach, fn: Callable, advice: Advice) -> NoReturn:
    root = before.root_of(path)
    assert root is not None
    raise TypeError(
        f"The function writes to `{path}`, in {described(root.value)} that it has not made "
        "itself. It runs in a trace, once for many calls: the write would be lost, or leave a "
        f"tracer behind. Nothing has been changed. {advice(_name(fn), root)}"
    )


def _explain(error: BaseException, before: Reach, fn: Callable, advice: Advice) -> None:
    """Adds a note to what a library raises of a write."""
    cls, known = type(error), getattr(error, "__notes__", ())
    if cls.__name__ != "TraceContextError" or cls.__module__.startswith("statemap"):
        return
    if any("has not made itself" in note for note in known):
        return
    path, trace = None, error.__traceback__
    while trace is not None:  # the innermost of the objects whose method is running
        path = before.paths.get(id(trace.tb_frame.f_locals.get("self")), path)
        trace = trace.tb_next
    root = None if path is None else before.root_of(path)
    if root is not None:
        name = _name(fn)
        error.add_note(
            f"(`{name}` writes to `{path}`, which it has not made itself. {advice(name, root)})"
        )
    elif "RandomState" in str(error) and cls.__module__.startswith("brainstate"):
        error.add_note(
            f"(`{_name(fn)}` draws from brainstate's own stream, which can't move on in a trace. "
            "The bridge has a stream for each lane: it makes the module itself, with a key, and "
            "its calls draw from the context.\n"
            "Wrong:  bridge.brainstate(Net())\n"
            "Right:  bridge.brainstate(lambda: Net(), key=key))"
        )


def _name(fn: Callable) -> str:
    name = function_name(fn)
    return name if name.isidentifier() else "fn"


def _bridge(name: str, root: Root) -> str:
    return (
        "The bridge makes states of such values.\n"
        f"Wrong:  sm.vmap2({name})(states, x)\n{way_in(root.value, root.name)}"
    )


def make_inside(name: str, root: Root) -> str:
    """The advice for what makes new states."""
    given = root.name if root.name.isidentifier() else "rngs"
    made = "nnx.Rngs(key)" if library(root.value) == "nnx" else f"{type(root.value).__name__}(...)"
    return (
        f"`{name}` runs in the lanes: make it inside, from `key`.\n"
        f"Wrong:  {given} = {made.replace('key', '0')}; sm.vmap2_new_states(make, ...)\n"
        f"Right:  def make(*, key): {given} = {made}; ..."
    )

"""The bridge for Haiku. Tried with dm-haiku 0.0.17."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
import numpy as np

from .._exact import PLAIN
from .._flow import Flow
from .._jaxpr import eval_jaxpr
from .._state import LongTermState, ParamState, State
from .._states import States
from .._values import describe, dotted, to_path
from ._adopt import bridged, Kinds
from ._adopted import Adopted
from ._given import as_arrays, init_and_stream
from ._library import Library, Method


_KINDS: dict[Any, type[State]] = {"params": ParamState, "state": LongTermState}
_WITH_STATE = (hk.TransformedWithState, hk.MultiTransformedWithState)
_MULTI = (hk.MultiTransformed, hk.MultiTransformedWithState)


def haiku(
    transformed: Any,
    *example: Any,
    key: Any = None,
    params: Any = None,
    state: Mapping[str, Any] | None = None,
    kinds: Kinds | None = None,
    **example_kwargs: Any,
) -> tuple[Adopted[Any], States]:
    """A transformed function of [Haiku](https://dm-haiku.readthedocs.io) as a function of states.

    ```python
    import haiku as hk
    import jax, jax.numpy as jnp
    import statemap as sm
    from statemap import bridge

    @hk.transform_with_state
    def forward(x, is_training=True):
        x = hk.Linear(4)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training)
        return hk.dropout(hk.next_rng_key(), 0.5, x) if is_training else x

    x = jnp.ones((8, 3))
    make = lambda *, key: bridge.haiku(forward, x, key=key)
    net, states, axes = sm.vmap2_new_states(make, key=jax.random.key(0), axis_size=10)
    out, states = sm.vmap2(net, in_axes=None, state_in_axes=axes)(states, x)
    assert out.shape == (10, 8, 4) and states["params.linear.w"].shape == (10, 3, 4)

    params, state = net.rebuild(sm.lane(states, axes, 0))
    out, state = forward.apply(params, state, None, x, is_training=False)
    ```

    Every parameter is a `ParamState`, at `params.linear.w`, and everything else that Haiku keeps a
    `LongTermState`, at `state.batch_norm/~/mean_ema.hidden`. At `rng` stands a `RandomState`, which
    moves on when a call draws from it, so that each call and each lane draws numbers of its own.

    **Arguments:**

    - `transformed`: of `hk.transform`, `hk.transform_with_state`, `hk.multi_transform` or
        `hk.multi_transform_with_state`, perhaps with `hk.without_apply_rng`, which leaves out the
        stream. Transform once, outside of what makes members: each transformed function is
        another.
    - `*example`, `**example_kwargs`: what it is initialised with.
    - `key`: a key or an integer seed. One part of `jax.random.split(key)` initialises the model,
        the stream starts at the other.
    - `params`, `state`: those of a model that is trained already, which is not initialised then.
        Without a `key` there is no stream.
    - `kinds`: other kinds, `{"state": sm.HiddenState}`; or a function `(path, array) -> kind`,
        which may return None.

    **Returns:**

    `(model, states)`: an [`statemap.bridge.Adopted`][], and its context. `model.method("encode")`,
    or short `model.encode`, is one of several functions, and `model.method(0)` one of a tuple.
    `model.rebuild` gives `(params, state)`, or `params` where Haiku has no state.

    **Raises:**

    `TypeError` if `transformed` is none of Haiku's, or a key is missing.
    """
    if not isinstance(transformed, (hk.Transformed, *_WITH_STATE, *_MULTI)):
        raise TypeError(
            "`bridge.haiku` takes what Haiku has transformed, and was given "
            f"{describe(transformed)}.\n"
            "Wrong:  bridge.haiku(forward, x, key=key)\n"
            "Right:  bridge.haiku(hk.transform_with_state(forward), x, key=key)"
        )
    library = _Haiku(transformed, isinstance(transformed, _WITH_STATE))
    init, stream = init_and_stream(key, "bridge.haiku")
    tree = _container(library, init, params, state, example, example_kwargs)
    if stream is not None and any(map(_takes_key, library.functions.values())):
        tree["rng"] = stream
    return bridged(library, tree, kinds, _KINDS)


_OF_APPLY = (
    "The context holds the parameters, the state and the key, and what a call writes comes back in "
    "it.\n"
    "Wrong:  model.apply(params, state, rng, x)\n"
    "Right:  out, states = model(states, x)"
)


@dataclasses.dataclass(frozen=True)
class _Haiku(Library):
    transformed: Any
    has_state: bool
    name = "haiku"
    instead = {"apply": _OF_APPLY}

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        """By name; one alone has an empty one."""
        found, _ = jax.tree_util.tree_flatten_with_path(self.transformed.apply)
        return {dotted(to_path(keys)): fn for keys, fn in found}

    def build(self, tree: Any) -> Any:
        return (tree["params"], tree["state"]) if self.has_state else tree["params"]

    def take(self, built: Any, tree: Any) -> Any:
        parts = built if self.has_state else (built,)
        if not isinstance(parts, tuple) or not all(isinstance(p, Mapping) for p in parts):
            what = "a pair of dictionaries, `(params, state)`" if self.has_state else "`params`"
            raise TypeError(f"What a Haiku model is made of is {what}, not {describe(built)}.")
        return {**tree, **{k: _plain(p) for k, p in zip(("params", "state"), parts)}}

    def call(
        self, tree: Any, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        fn, after = self.function(None, method), dict(tree)
        given = [tree["params"], *([tree["state"]] if self.has_state else [])]
        if not _takes_key(fn):
            out = fn(*given, *args, **kwargs)
        elif "rng" not in tree:
            out = fn(*given, None, *args, **kwargs)
        else:
            carry, draw = jax.random.split(tree["rng"])
            try:
                out, is_drawn = _watch(lambda key: fn(*given, key, *args, **kwargs), draw)
            except TypeError as error:
                if "rng" in kwargs and "multiple values" in str(error):
                    error.add_note(_OF_APPLY)
                raise
            after["rng"] = carry if is_drawn else tree["rng"]
        if self.has_state:
            out, after["state"] = out
            after["state"] = _plain(after["state"])
        return out, after

    def function(self, built: Any, method: Method) -> Callable[..., Any]:
        found = self.functions.get("" if method is None else str(method))
        if found is not None and not callable(method):
            return found
        names = ", ".join(f"`{name}`" for name in self.functions if name)
        raise TypeError(
            "A Haiku model has the functions that were transformed"
            + (f": {names}. Name one of them.\n" if names else ", here one alone.\n")
            + "Wrong:  model.method(lambda module, x: ...)\n"
            'Right:  model.method("encode"), of hk.multi_transform_with_state'
        )

    def has_method(self, name: str) -> bool:
        return name in self.functions


def _container(
    library: _Haiku, init: Any, params: Any, state: Any, example: tuple, example_kwargs: dict
) -> dict[str, Any]:
    if params is None:
        if state is not None:
            raise TypeError(
                "`state` goes with `params`: bridge.haiku(..., params=params, state=...)"
            )
        if init is None:
            raise TypeError(
                "To initialise a Haiku model takes a key.\n"
                "Right:  bridge.haiku(transformed, x, key=jax.random.key(0))\n"
                "Right:  bridge.haiku(transformed, params=params, state=state), of one that is "
                "trained already"
            )
        built = library.transformed.init(init, *example, **example_kwargs)
    elif (state is not None) != library.has_state:
        needs = "has a state, too: `state=`" if library.has_state else "has no `state`"
        raise TypeError(f"This Haiku model {needs}.")
    else:
        built = (params, state) if library.has_state else params
    return as_arrays(library.take(built, {}))


def _plain(found: Any) -> Any:
    """Dictionaries in the place of Haiku's mappings."""
    return {k: _plain(v) for k, v in found.items()} if isinstance(found, Mapping) else found


def _takes_key(fn: Callable[..., Any]) -> bool:
    """Whether a function of Haiku takes a key, which `hk.without_apply_rng` does away with. (Of an
    argument of the user's by that name the signature that Haiku makes keeps no second one.)
    """
    return "rng" in inspect.signature(fn).parameters


def _watch(fn: Callable[[Any], Any], key: Any) -> tuple[Any, bool]:
    """What a function of a key returns, and whether it draws from the key. Haiku says that only
    inside the function, so that the function's program is asked.
    """
    rest: list[Any] = []

    def flat(key: Any) -> list[jax.Array]:
        leaves, treedef = jax.tree.flatten(fn(key))
        rest[:] = treedef, [None if isinstance(x, jax.Array) else (x,) for x in leaves]
        return [x for x in leaves if isinstance(x, jax.Array)]

    closed = jax.make_jaxpr(flat)(key)
    (is_drawn,) = Flow(closed.jaxpr).matter([True] * len(closed.jaxpr.outvars))
    treedef, static = rest
    if not all(x is None or isinstance(x[0], (*PLAIN, np.ndarray)) for x in static):
        return fn(key), is_drawn  # an object, perhaps with arrays of the program in it
    arrays = iter(eval_jaxpr(closed.jaxpr, closed.consts, key))
    return treedef.unflatten([next(arrays) if x is None else x[0] for x in static]), is_drawn

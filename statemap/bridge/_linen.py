"""The bridge for Flax Linen. Tried with flax 0.12.8 and 0.12.12."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.errors
import jax
import jax.core
from flax import linen as nn
from flax.core import meta, unfreeze

from .._exact import exact, Identity
from .._state import BatchState, ParamState, ShortTermState, State
from .._states import States
from .._streams import key_at
from .._values import describe, is_skeleton
from ._adopt import bridged, Kinds
from ._adopted import Adopted
from ._given import as_arrays, init_and_stream
from ._library import Library, Method


_KINDS: dict[Any, type[State]] = {
    "params": ParamState,
    "batch_stats": BatchState,
    "cache": ShortTermState,
}


def linen(
    module: Any,
    *example: Any,
    key: Any = None,
    variables: Mapping[str, Any] | None = None,
    rngs: Sequence[str] = ("params",),
    kinds: Kinds | None = None,
    method: str | Callable[..., Any] | None = None,
    sown: Sequence[str] = (),
    **example_kwargs: Any,
) -> tuple[Adopted[dict[str, Any]], States]:
    """A module of [Flax Linen](https://flax-linen.readthedocs.io) as a function of states.

    ```python
    import flax.linen as nn
    import jax, jax.numpy as jnp
    import statemap as sm
    from statemap import bridge

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            x = nn.Dense(4)(x)
            x = nn.BatchNorm(use_running_average=not train, axis_name="batch")(x)
            return nn.Dropout(0.5, deterministic=not train)(x)

    net, states = bridge.linen(Net(), jnp.ones(3), train=False, key=jax.random.key(0))
    out, states = sm.vmap2(net, axis_name="batch")(states, jnp.ones((8, 3)))
    assert out.shape == (8, 4) and states["params.Dense_0.kernel"].shape == (3, 4)

    variables = net.rebuild(states)
    out = Net().apply(variables, jnp.ones(3), train=False)
    ```

    Every variable becomes a state at its path, such as `batch_stats.BatchNorm_0.mean`. Those of the
    collection `params` are `ParamState`s, of `batch_stats` `BatchState`s (as brainstate has them),
    of `cache` `ShortTermState`s, and of any other `LongTermState`s. A call may write to all of them
    but to `params`, as a call of `apply` where they are `mutable`. A box such as `nn.Partitioned`
    stays around the value, and its class is the tag of the state.

    At `rngs.params` stands a `RandomState`, which moves on when a call draws from it, so that each
    call and each lane draws numbers of its own.

    **Arguments:**

    - `module`: an `nn.Module`, unbound.
    - `*example`, `**example_kwargs`: what the module is initialised with; shapes
        (`jax.ShapeDtypeStruct`) are enough.
    - `key`: a key or an integer seed. One part of `jax.random.split(key)` initialises the module,
        the streams come of the other.
    - `variables`: those of a module that is trained already, which is not initialised then. Without
        a `key` there is no stream.
    - `rngs`: the names of the streams. In Linen the stream `params` serves every name that there
        is none for. Name those that the module asks for where it makes a difference, as for
        `nn.scan(split_rngs={"dropout": True})`.
    - `kinds`: other kinds, by collection, `{"counter": sm.HiddenState}`, or by class of box; or a
        function `(path, variable) -> kind`, which may return None.
    - `method`: what is initialised and called, a name or a function `(module, *args)`; `__call__`
        by default. `model.method` gives the others.
    - `sown`: collections that each call makes anew, such as `intermediates`. They are no states: a
        call returns `(out, {"intermediates": ...})`. What `sow` adds to a collection that is
        neither here nor made in the beginning is dropped, as in Linen.

    **Returns:**

    `(model, states)`: an [`statemap.bridge.Adopted`][], which rebuilds the variables, and its
    context.

    **Raises:**

    `TypeError` if `module` is none of Linen's, or a key is missing.
    """
    _check(module, variables, rngs, sown, key)
    init, stream = init_and_stream(key, "bridge.linen")
    made: Any = variables
    if made is None:
        # Each stream of its own, as `params` need not serve the others.
        keys = {name: init if name == "params" else key_at(init, (name,)) for name in rngs}
        make: Any = module.lazy_init if is_skeleton((example, example_kwargs)) else module.init
        made = make({"params": init, **keys}, *example, method=method, **example_kwargs)
    tree = as_arrays({c: v for c, v in unfreeze(dict(made)).items() if c not in sown})
    if "rngs" in tree:
        raise ValueError(
            f"`{type(module).__name__}` has a collection called `rngs`, which is where the bridge "
            "keeps the random streams. Give the collection another name."
        )
    if stream is not None and rngs:
        tree["rngs"] = {name: key_at(stream, (name,)) for name in rngs}
    library = _Linen(module, _static(module, []), tuple(sown))
    model, states = bridged(library, tree, kinds, _KINDS, _is_box)
    return model if method is None else model.method(method), states


_OF_APPLY = (
    "The context holds the variables and the streams, and what a call writes comes back in it.\n"
    'Wrong:  model.apply(variables, x, rngs={"dropout": key}, mutable=["batch_stats"])\n'
    "Right:  out, states = model(states, x)"
)


@dataclasses.dataclass(frozen=True)
class _Linen(Library):
    module: Any = dataclasses.field(compare=False)
    key: Any = dataclasses.field(repr=False)
    sown: tuple[str, ...]
    instead = {"apply": _OF_APPLY}

    @property
    def name(self) -> str:  # pyright: ignore
        return type(self.module).__name__

    def build(self, tree: Any) -> Any:
        return {collection: tree[collection] for collection in tree if collection != "rngs"}

    def take(self, built: Any, tree: Any) -> Any:
        if not isinstance(built, Mapping):
            raise TypeError(
                f"The variables of `{self.name}` are a dictionary of collections, and were "
                f"{describe(built)}."
            )
        # `apply` returns the collections that are mutable; the others stay.
        return {**tree, **{c: v for c, v in unfreeze(dict(built)).items() if c != "rngs"}}

    def call(
        self, tree: Any, method: Method, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any]:
        streams = tree.get("rngs", {})
        splits = {name: jax.random.split(key) for name, key in streams.items()}
        variables, drawn = self.build(tree), set()

        def run(bound: nn.Module) -> Any:
            root: Any = bound.scope
            out = self.function(bound, method)(*args, **kwargs)
            drawn.update(name for name in streams if _is_drawn(root.rng_counters, name))
            return out

        try:
            out, written = self.module.apply(
                variables,
                rngs={name: draw for name, (_, draw) in splits.items()},
                mutable=[*(c for c in variables if c != "params"), *self.sown],
                method=run,
            )
        except flax.errors.FlaxError as error:
            for note in (text for cls, text in _NOTES.items() if isinstance(error, cls)):
                error.add_note(note.format(self.name))
            raise
        except TypeError as error:
            if not {"rngs", "mutable"}.isdisjoint(kwargs) and "unexpected keyw" in str(error):
                error.add_note(_OF_APPLY)
            raise
        if self.sown:
            out = out, {c: written.pop(c) for c in self.sown if c in written}
        after = self.take(written, tree)
        if streams:
            after["rngs"] = {n: splits[n][0] if n in drawn else k for n, k in streams.items()}
        return out, after

    def has_method(self, name: str) -> bool:
        own = getattr(self.module, name, None)  # of a submodule, too
        return not hasattr(nn.Module, name) and (callable(own) or isinstance(own, nn.Module))


_NOTES = {
    flax.errors.InvalidRngError: (
        "(A bridged `{0}` draws from the streams that `bridge.linen` was told of: "
        'bridge.linen(..., key=key, rngs=("params", "dropout")).)'
    ),
    **dict.fromkeys(
        (flax.errors.ModifyScopeVariableError, flax.errors.ScopeCollectionNotFound),
        "(A context keeps the states that it was made with: the collections of the variables that "
        "`{0}` was initialised with. `params` no call may write; what each call makes anew is no "
        'state: bridge.linen(..., sown=("intermediates",)).)',
    ),
}


def _is_drawn(counters: Mapping[Any, Any], name: str) -> bool:
    """Whether a key was made of a stream. A scope counts those, and below them keeps the counts of
    the scopes inside it; lifted transforms share them with the scopes that they make. (`nn.jit`
    makes a key for what it compiles at any rate.)
    """
    return any(
        _is_drawn(found, name) if isinstance(found, Mapping) else place == name and found > 0
        for place, found in counters.items()
    )


def _is_box(x: Any) -> bool:
    return isinstance(x, meta.AxisMetadata)


def _static(x: Any, above: list[nn.Module]) -> Any:
    """What a module is made of, exactly; objects that can't be compared are equal to themselves.

    **Arguments:**

    - `above`: the modules that were found. One at two places is another model than two.
    """
    if isinstance(x, nn.Module):
        place = [i for i, module in enumerate(above) if module is x]
        if place:
            return "again", place[0]
        above.append(x)
        names = [f.name for f in dataclasses.fields(x) if f.name != "parent"]
        return type(x), tuple((name, _static(getattr(x, name, None), above)) for name in names)
    if isinstance(x, Mapping):
        return type(x), tuple((exact(k), _static(v, above)) for k, v in x.items())
    if isinstance(x, (list, tuple)):
        return type(x), tuple(_static(v, above) for v in x)
    if isinstance(x, jax.core.Tracer):
        raise TypeError(
            "A field of a Linen module holds an array that is being traced, which would be lost "
            "with the trace. Make it a parameter or a variable of the module: "
            "`self.param(name, init, ...)`."
        )
    try:
        hash(x)
    except TypeError:  # an array, say
        return Identity(x, weak=False)
    return exact(x)


def _check(module: Any, variables: Any, rngs: Any, sown: Any, key: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`bridge.linen` takes a module of Flax Linen that is made, and was given {module!r}. "
            "(Those of Flax NNX `bridge.nnx` takes.)\n"
            "Wrong:  bridge.linen(Net, x, key=key)\n"
            "Right:  bridge.linen(Net(), x, key=key)"
        )
    if module.scope is not None:
        raise TypeError(
            f"This `{type(module).__name__}` is bound to variables, and `bridge.linen` takes both "
            "apart.\n"
            "Right:  module, variables = bound.unbind()\n"
            "        bridge.linen(module, variables=variables)"
        )
    for what, names in {"rngs": rngs, "sown": sown}.items():
        if isinstance(names, str):
            raise TypeError(f'`{what}` are names, such as ("{names}",), and not {names!r}.')
    if variables is None and key is None:
        raise TypeError(
            f"To initialise `{type(module).__name__}` takes a key.\n"
            "Right:  bridge.linen(module, x, key=jax.random.key(0))\n"
            "Right:  bridge.linen(module, variables=variables), of one that is trained already"
        )
    if not (variables is None or isinstance(variables, Mapping)):
        raise TypeError(
            "`variables` is a dictionary of collections, as `module.init` returns it, not "
            f"{describe(variables)}."
        )

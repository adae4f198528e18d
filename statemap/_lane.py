"""The lane: a mapped function traced once, as a lane sees it.

What a mapping does follows from the lane's program alone, before anything is batched, cut into
chunks or laid over devices: what it reads, what it writes, what it draws from, and what it merely
passes on. Then the program is mapped, whole, by chunks or over a mesh.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from ._chunks import in_chunks
from ._errors import BatchAxisError
from ._flow import Flow, forwarded
from ._jax import lay_lanes
from ._jaxpr import dce_jaxpr, eval_jaxpr, make_jaxpr
from ._reduce import Reduction


@dataclasses.dataclass(frozen=True, eq=False)
class Lane:
    """A function as one lane runs it: a program from flat arrays to flat arrays."""

    jaxpr: Any
    consts: list[Any]
    avals: list[Any]  # of the inputs

    @staticmethod
    def trace(
        fn: Callable[[list[Any]], list[Any]],
        avals: Sequence[Any],
        name: str,
        axis_name: Hashable,
        lanes: int,
    ) -> "Lane":
        """Runs a function once, on abstract values.

        **Arguments:**

        - `fn`: from a list of arrays to a list of arrays.
        - `avals`: what a lane sees of each.
        - `name`, `axis_name`, `lanes`: of the mapping.
        """
        try:
            closed = make_jaxpr(fn, avals, None if axis_name is None else [(axis_name, lanes)])
        except (BatchAxisError, NameError) as error:
            _explain(error, name, axis_name, lanes)
            raise
        return Lane(forwarded(closed.jaxpr), list(closed.consts), list(avals))

    @property
    def holds_tracer(self) -> bool:
        """Whether the function closes over values of a trace that is going on."""
        return any(isinstance(x, jax.core.Tracer) for x in self.consts)

    def pruned(self, wanted: Sequence[bool]) -> tuple["Lane", list[bool]]:
        """The program with the wanted outputs alone, and which inputs it takes."""
        jaxpr, used = dce_jaxpr(self.jaxpr, wanted)
        avals = [aval for aval, u in zip(self.avals, used) if u]
        return Lane(jaxpr, self.consts, avals), used

    def flow(self) -> Flow:
        return Flow(self.jaxpr)

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """The outputs, in a lane."""
        for x, aval in zip(arrays, self.avals):
            if jnp.shape(x) != aval.shape:
                raise ValueError(
                    "The `mapping_fn` gave the function an array of shape "
                    f"{jnp.shape(x)}, where a lane has {aval.shape}. It maps as `jax.vmap` "
                    "does, one lane at a time on the axes that it is given; what gives the "
                    "function blocks of lanes (`jax.shard_map`), or all of them, can't stand here."
                )
        return eval_jaxpr(self.jaxpr, self.consts, *arrays)

    def over(
        self,
        mapping: Callable[..., Any],
        arrays: Sequence[Any],
        axes: Sequence[int | None],
        stacked: Sequence[int],
        lanes: int,
        lanes_sharding: Any,
        chunk_size: int | None = None,
        reductions: Mapping[int, Reduction] = MappingProxyType({}),
    ) -> list[Any]:
        """The outputs of all lanes.

        **Arguments:**

        - `mapping`: called with a function of the list of mapped arrays, and `in_axes`,
            `out_axes` and `axis_size`; it maps as `jax.vmap` does.
        - `arrays`, `axes`: the inputs, each with the axis of its lanes.
        - `stacked`: the outputs that differ between lanes, which come out with the lanes on
            axis 0. The others all lanes share.
        - `lanes_sharding`: how lanes lie over an explicit mesh.
        - `chunk_size`: how many lanes at a time; all by default.
        - `reductions`: of the outputs that differ, those that come out reduced over the lanes.
        """
        chunk_size = None if chunk_size is None or chunk_size >= lanes else chunk_size
        shared = sorted(set(range(len(self.jaxpr.outvars))) - set(stacked))

        def one(mapped: list[Any]) -> tuple[list[Any], list[Any]]:
            own = iter(mapped)
            flat = self.run([x if a is None else next(own) for x, a in zip(arrays, axes)])
            return [flat[k] for k in stacked], [flat[k] for k in shared]

        if chunk_size is not None:
            out = [var.aval for var in self.jaxpr.outvars]
            reduced = {p: (reductions[k], out[k]) for p, k in enumerate(stacked) if k in reductions}
            mapping = in_chunks(mapping, chunk_size, [out[k] for k in shared], reduced)
        mapped = [x for x, a in zip(arrays, axes) if a is not None]
        in_axes = [a for a in axes if a is not None]
        if not mapped:  # there is something to map, always
            mapped, in_axes = [lay_lanes(jnp.arange(lanes), lanes_sharding)], [0]
        mapped_fn = mapping(one, in_axes=(in_axes,), out_axes=(0, None), axis_size=lanes)
        many, alike = mapped_fn(mapped)
        found = dict(zip(stacked, many)) | dict(zip(shared, alike))
        self._check(shared, alike, ())
        for k, x in zip(stacked, many):
            if chunk_size is not None and k in reductions:
                found[k] = reductions[k].end(x)
                continue
            self._check([k], [x], (lanes,))
            if k in reductions:
                found[k] = reductions[k].end(reductions[k].part(x))
            elif chunk_size is not None:
                found[k] = lay_lanes(x, lanes_sharding)
        # A literal of the program is no array yet.
        return [jnp.asarray(found[k]) for k in range(len(found))]

    def _check(self, outputs: Sequence[int], found: Sequence[Any], lanes: tuple[int, ...]) -> None:
        """Refuses what a `mapping_fn` gives back if it is not of the shape that it was told."""
        for k, x in zip(outputs, found):
            expected = (*lanes, *self.jaxpr.outvars[k].aval.shape)
            if jnp.shape(x) != expected:
                raise ValueError(
                    f"The `mapping_fn` gave back an array of shape {jnp.shape(x)}, where "
                    f"{expected} was expected. It maps as `jax.vmap` does, and keeps to the "
                    "`out_axes` that it is given, a pair of 0 and None: what is under None comes "
                    "back as it is in one lane."
                )

    def differ(
        self,
        asked: Sequence[int],
        mapping: Callable[..., Any],
        avals: Sequence[Any],
        axes: Sequence[int | None],
        lanes: int,
        lanes_sharding: Any,
    ) -> set[int]:
        """Which of some outputs depend on the lane of this very map.

        `custom_vmap` calls a rule of ours when the map is applied to it, and says of each input
        whether the map batches it. The marker makes sure that the map meant is the innermost one:
        a value that only varies over an outer map is shared here. A mapping function that does
        not batch, such as `jax.pmap`, calls no rule; then everything may differ.

        **Arguments:**

        - `asked`: the positions of the outputs.
        - `avals`, `axes`: of all lanes' inputs.

        The others are those of `over`.
        """
        if not asked:
            return set()
        wanted = [k in set(asked) for k in range(len(self.jaxpr.outvars))]
        part, used = self.pruned(wanted)
        mine = [x for x, u in zip(avals, used) if u]
        mine_axes = [a for a, u in zip(axes, used) if u]
        if all(a is None for a in mine_axes) and not part.jaxpr.effects:
            return set()  # it can depend on nothing
        seen: list[list[bool]] = []

        @jax.custom_batching.custom_vmap
        def mark(values: list[Any], marker: jax.Array) -> jax.Array:
            return marker

        @mark.def_vmap
        def rule(axis_size: int, batched: Any, values: Any, marker: jax.Array) -> Any:
            seen.append(batched[0])
            return marker, True

        del rule

        def every(arrays: list[Any]) -> Any:
            def one(marker: jax.Array, mapped: list[Any]) -> Any:
                own = iter(mapped)
                flat = part.run([x if a is None else next(own) for x, a in zip(arrays, mine_axes)])
                return [mark(jax.lax.stop_gradient(flat), marker)], []

            marker = lay_lanes(jnp.arange(lanes), lanes_sharding)
            in_axes = (0, [a for a in mine_axes if a is not None])
            mapped = [x for x, a in zip(arrays, mine_axes) if a is not None]
            return mapping(one, in_axes=in_axes, out_axes=(0, None), axis_size=lanes)(
                marker, mapped
            )

        jax.eval_shape(every, mine)
        if not seen:
            return set(asked)
        return {k for k, differs in zip(sorted(asked), seen[0]) if differs}


def _explain(error: Exception, name: str, axis_name: Hashable, lanes: int) -> None:
    """Says which of several nested mappings an error is about."""
    if getattr(error, "__notes__", None):
        return
    if isinstance(error, BatchAxisError):
        error.add_note(f"(In the mapping of `{name}` over {lanes} lanes.)")
    elif "unbound axis name" in str(error):
        given = "no `axis_name`" if axis_name is None else f"`axis_name={axis_name!r}`"
        error.add_note(
            f"The mapping of `{name}` was given {given}. A collective needs the name of its axis: "
            'vmap2(..., axis_name="batch").'
        )

"""Lanes over devices: the mesh they lie on, and where each array goes."""

import functools
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ._jax import on_axis
from ._state_axes import Axis


DeviceSpec = Sequence[Any] | Mesh | None  # `jax.Device` is of unknown type to checkers


class Devices:
    """A mesh, and the axis or axes of it that the lanes are laid over."""

    def __init__(
        self, mesh: Mesh | AbstractMesh, axis: Hashable | tuple[Hashable, ...], adopts: bool = False
    ):
        """**Arguments:**

        - `mesh`, `axis`: the mesh, and its axis or axes.
        - `adopts`: whether the lanes lie on the mesh of a call's arrays, if these have one.
        """
        self.mesh = mesh
        self.axis = axis
        # Axes that are part of an array's type, which `jax.vmap` follows by itself.
        self.is_explicit = AxisType.Explicit in mesh.axis_types
        self.adopts = adopts
        names = axis if isinstance(axis, tuple) else (axis,)
        unknown = [n for n in names if n not in mesh.axis_names]
        if unknown:
            raise ValueError(
                f"The mesh has the axes {', '.join(map(repr, mesh.axis_names))}, and no "
                f"{unknown[0]!r}."
            )
        self.count = functools.reduce(operator.mul, (mesh.shape[n] for n in names), 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Devices) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.mesh, self.axis, self.adopts

    def adopt(
        self, given: Sequence[Any], axes: Callable[[], tuple[Sequence[Any], Sequence[Axis]]]
    ) -> "Devices":
        """The mesh of a call's arrays, if they lie on one mesh of several devices, and it is clear
        on which axis of it the lanes are to lie; otherwise this one.

        **Arguments:**

        - `given`: all arrays.
        - `axes`: tells the same arrays, and the axis of each that holds the lanes.
        """
        placed = map(_where, given)
        meshes = {s.mesh for s in placed if isinstance(s, NamedSharding) and s.mesh.size > 1}
        if len(meshes) != 1 or (mesh := meshes.pop()) == self.mesh:
            return self
        if len(mesh.axis_names) == 1:
            return Devices(mesh, mesh.axis_names[0])
        if self.axis in mesh.axis_names:  # the name that the lanes were given
            return Devices(mesh, self.axis)
        found = set()
        for x, axis in zip(*axes()):
            spec = getattr(_where(x), "spec", ())
            if axis is not None and np.ndim(x) and axis % np.ndim(x) < len(spec):
                found.add(spec[axis % np.ndim(x)])
        found.discard(None)
        return Devices(mesh, found.pop()) if len(found) == 1 else self

    def check(self, lanes: int) -> None:
        """Refuses a number of lanes that the devices do not divide."""
        if lanes % self.count:
            below, above = lanes - lanes % self.count, lanes + self.count - lanes % self.count
            works = f"{below} or {above}" if below else f"{above}"
            raise ValueError(
                f"{lanes} lanes can't be laid over {self.count} devices, each of which takes as "
                f"many as the others. The nearest number that works is {works}."
            )

    def place(self, x: Any, axis: Axis) -> Any:
        """`x` with its lanes' axis over the devices, or a copy on each; moved only if it is not
        there already. What can't lie there is left for the layout of the call to refuse.
        """
        if isinstance(x, (jax.core.Tracer, jax.ShapeDtypeStruct)):
            return x
        if axis is not None and np.shape(x)[axis] % self.count:
            return x
        wanted = _sharding(self, axis)
        # An equal layout in another mesh would take `jax.jit` its fast path.
        if isinstance(x, jax.Array) and x.committed and x.sharding == wanted:
            return x
        if wanted.is_fully_addressable or isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, wanted)
        # Over several processes, each puts its own part of what all hold. `device_put` would
        # compare the whole of it between them at each call, and refuse NaN, and keys.
        if not isinstance(x, jax.Array):
            x = np.asarray(x, jax.dtypes.canonicalize_dtype(jnp.result_type(x)))
        return jax.make_array_from_callback(np.shape(x), wanted, lambda index: x[index])

    def constrain(self, x: jax.Array, axis: Axis) -> jax.Array:
        """The same for an array inside a program."""
        if self.is_explicit:  # what is laid over other axes of the mesh stays there
            return on_axis(x, self.mesh, axis, self.axis)
        return jax.lax.with_sharding_constraint(x, _sharding(self, axis))


def _where(x: Any) -> Any:
    """Where an array lies; of a traced one, where its type says, on a mesh with explicit axes."""
    if isinstance(x, jax.core.Tracer):
        sharding = getattr(jax.typeof(x), "sharding", None)
        explicit = sharding is not None and AxisType.Explicit in sharding.mesh.axis_types
        return sharding if explicit else None
    return getattr(x, "sharding", None) if isinstance(x, jax.Array) else None


@functools.lru_cache(256)
def _sharding(devices: Devices, axis: Axis) -> NamedSharding:
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, devices.axis)
    return NamedSharding(devices.mesh, spec)


def make_devices(
    devices: DeviceSpec,
    backend: str | None,
    axis_name: Hashable,
) -> Devices:
    """The mesh that `pmap2` lays its lanes over.

    **Arguments:**

    - `devices`: a list of devices, or an existing mesh; by default that on which the arrays of a
        call lie, and otherwise all devices, in every process.
    - `backend`: the platform of the default devices: `"cpu"`, `"gpu"` or `"tpu"`.
    - `axis_name`: the name of the lanes; of an existing mesh, the axis to use.
    """
    if isinstance(devices, Mesh):
        if axis_name is None:
            if len(devices.axis_names) != 1:
                raise ValueError(
                    f"The mesh has several axes, {', '.join(map(repr, devices.axis_names))}: name "
                    "the one that the lanes lie on with `axis_name`."
                )
            axis_name = devices.axis_names[0]
        return Devices(devices, axis_name)
    adopts = devices is None and backend is None
    if devices is None:
        devices = jax.devices(backend)
    if isinstance(devices, str) or not isinstance(devices, (Sequence, np.ndarray)):
        raise TypeError(
            f"`devices` is a list of devices or a mesh, not {devices!r}.\n"
            "Wrong:  sm.pmap2(f, devices=2)\n"
            "Right:  sm.pmap2(f, devices=jax.devices()[:2]), or `backend='cpu'` for all devices "
            "of a platform"
        )
    devices = list(devices)
    if wrong := [d for d in devices if not isinstance(d, jax.Device)]:
        raise TypeError(f"`devices` holds {wrong[0]!r}, which is no device of `jax.devices()`.")
    if not devices:
        raise ValueError("`devices` is empty: lanes need at least one device to lie on.")
    if len(set(devices)) < len(devices):
        twice = next(d for k, d in enumerate(devices) if d in devices[:k])
        raise ValueError(f"`devices` holds {twice} twice. A device takes one part of the lanes.")
    name = axis_name if isinstance(axis_name, str) else "lanes"
    return Devices(Mesh(np.asarray(devices), (name,)), name, adopts)

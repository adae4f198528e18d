"""`Map` and `Vmap` of brainstate, over its modules, as those of the shim."""

from typing import Any

from ..nn._map import MapBehaviour
from ..nn._vmap import VmapBehaviour


def over(nn: Any) -> dict[str, type]:
    """The classes by name.

    **Arguments:**

    - `nn`: the module `brainstate.nn`.
    """

    class Map(MapBehaviour, nn.Module):
        __module__ = nn.__name__
        __doc__ = nn.Map.__doc__

    class Vmap(VmapBehaviour, nn.Module):
        __module__ = nn.__name__
        __doc__ = nn.Vmap.__doc__

    return {"Map": Map, "Vmap": Vmap}

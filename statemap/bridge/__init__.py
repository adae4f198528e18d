"""Models of other libraries as mapped functions of states.

```python
from flax import nnx
import jax, jax.numpy as jnp
import statemap as sm
from statemap import bridge

make = lambda *, key: bridge.nnx(nnx.Linear(3, 4, rngs=nnx.Rngs(key)))
model, states, axes = sm.vmap2_new_states(make, key=jax.random.key(0), axis_size=8)
out, states = sm.vmap2(model, in_axes=None, state_in_axes=axes)(states, jnp.ones(3))
assert out.shape == (8, 4) and states["kernel"].shape == (8, 3, 4)
```

Each library has a file of its own, which is imported when it is asked for.
"""

import importlib
import importlib.util
from typing import Any, TYPE_CHECKING

from ._adopt import adopt as adopt, Adopted as Adopted, unbind as unbind


if TYPE_CHECKING:
    from ._brainstate import brainstate as brainstate
    from ._equinox import equinox as equinox
    from ._haiku import haiku as haiku
    from ._linen import linen as linen
    from ._nnx import nnx as nnx


# The bridges, with what has to be installed. A library is imported when its bridge is asked for.
_PACKAGES = {
    "brainstate": "brainstate",
    "equinox": "equinox",
    "haiku": "dm-haiku",
    "linen": "flax",
    "nnx": "flax",
}
_MODULES = {"dm-haiku": "haiku"}  # where they are called otherwise


def __getattr__(name: str) -> Any:
    if name not in _PACKAGES:
        known = ", ".join(f"`{n}`" for n in ("adopt", "unbind", *_PACKAGES))
        raise AttributeError(f"`statemap.bridge` has no `{name}`. It has {known}.")
    try:
        found = getattr(importlib.import_module(f"._{name}", __name__), name)
    except ModuleNotFoundError as error:
        error.add_note(
            f"(`bridge.{name}` is for models of another library: `pip install {_PACKAGES[name]}`.)"
        )
        raise
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    found = {
        name
        for name, package in _PACKAGES.items()
        if importlib.util.find_spec(_MODULES[package] if package in _MODULES else package)
    }
    return sorted({*globals(), *found})

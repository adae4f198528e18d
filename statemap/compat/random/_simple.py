"""Plain uniform and normal numbers, whole numbers, choices and orders, by NumPy's names."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ._draw import draw, DType, float_dtype, int_dtype, Param, Size, Source
from ._keys import Seed


class Simple(Source):
    @draw(float)
    def rand(self, *dn: int, key: Seed = None, dtype: DType = None) -> jax.Array:
        """Uniform on [0, 1).

        **Arguments:**

        - `*dn`: the shape of what is drawn.
        """
        return jr.uniform(key, dn, dtype)

    @draw(float)
    def randn(self, *dn: int, key: Seed = None, dtype: DType = None) -> jax.Array:
        """Standard normal.

        **Arguments:**

        - `*dn`: the shape of what is drawn.
        """
        return jr.normal(key, dn, dtype)

    @draw(float)
    def random(self, size: Size = None, key: Seed = None, dtype: DType = None) -> jax.Array:
        """Uniform on [0, 1)."""
        return jr.uniform(key, size, dtype)

    def random_sample(self, size: Size = None, key: Seed = None, dtype: DType = None) -> jax.Array:
        """The same as `random`."""
        return self.random(size, key, dtype)

    def ranf(self, size: Size = None, key: Seed = None, dtype: DType = None) -> jax.Array:
        """The same as `random`."""
        return self.random(size, key, dtype)

    def sample(self, size: Size = None, key: Seed = None, dtype: DType = None) -> jax.Array:
        """The same as `random`."""
        return self.random(size, key, dtype)

    @draw(int)
    def randint(
        self,
        low: Param,
        high: Param = None,
        size: Size = None,
        dtype: DType = None,
        key: Seed = None,
    ) -> jax.Array:
        """Whole numbers, all as probable, of `low` and above, and below `high`.

        **Arguments:**

        - `low`, `high`: the bounds; with `low` alone, 0 and `low`.
        """
        if high is None:
            low, high = 0, low
        return jr.randint(key, size, low, high, dtype)

    @draw(int)
    def random_integers(
        self,
        low: Param,
        high: Param = None,
        size: Size = None,
        key: Seed = None,
        dtype: DType = None,
    ) -> jax.Array:
        """Whole numbers, all as probable, of `low` and above, up to and with `high`.

        **Arguments:**

        - `low`, `high`: the bounds; with `low` alone, 1 and `low`.
        """
        if high is None:
            low, high = 1, low
        return jr.randint(key, size, low, high + 1, dtype)

    @draw(sized=False)
    def choice(
        self,
        a: Param,
        size: Size = None,
        replace: bool = True,
        p: Param = None,
        key: Seed = None,
    ) -> Any:
        """Elements of an array, or slices along its first axis.

        **Arguments:**

        - `a`: what is chosen from; an int `n` stands for `arange(n)`. From what JAX has no arrays
            of, such as strings, an array of NumPy's is chosen.
        - `replace`: whether an element can be chosen again.
        - `p`: how probable each is; by default all are the same.
        """
        size = size or ()
        if isinstance(a, np.ndarray) and a.dtype.kind not in "biufc":
            chosen = jr.choice(key, len(a), size, replace, p)
            if isinstance(chosen, jax.core.Tracer):
                raise TypeError(
                    f"`choice` from an array of dtype {a.dtype} can't be traced. Choose numbers, "
                    "`choice(len(a), ...)`, and look the elements up outside."
                )
            return a[np.asarray(chosen)]
        return jr.choice(key, a, size, replace, p)

    @draw()
    def permutation(
        self, x: Param, axis: int = 0, independent: bool = False, key: Seed = None
    ) -> jax.Array:
        """An array in a random order.

        **Arguments:**

        - `x`: the array; an int `n` stands for `arange(n)`.
        - `axis`: along which axis it is put in order.
        - `independent`: whether each of the vectors along `axis` gets an order of its own.
        """
        return jr.permutation(key, x, axis, independent)

    def shuffle(self, x: Param, axis: int = 0, key: Seed = None) -> jax.Array:
        """An array in a random order. It is returned: arrays of JAX do not change in place.

        **Arguments:**

        - `x`: the array; an int `n` stands for `arange(n)`.
        - `axis`: along which axis it is put in order.
        - `key`: a key or seed to draw from, instead of the random state's stream.
        """
        return self.permutation(x, axis, key=key)

    @draw()
    def rand_like(self, input: Param, dtype: DType = None, key: Seed = None) -> jax.Array:
        """Uniform on [0, 1), in the shape of an array.

        **Arguments:**

        - `input`: the array.
        - `dtype`: the dtype that the numbers are turned into; by default that of `input`.
        """
        drawn = jr.uniform(key, jnp.shape(input), float_dtype())
        return drawn.astype(_dtype_like(input, dtype))

    @draw()
    def randn_like(self, input: Param, dtype: DType = None, key: Seed = None) -> jax.Array:
        """Standard normal, in the shape of an array.

        **Arguments:**

        - `input`: the array.
        - `dtype`: the dtype that the numbers are turned into; by default that of `input`.
        """
        drawn = jr.normal(key, jnp.shape(input), float_dtype())
        return drawn.astype(_dtype_like(input, dtype))

    @draw()
    def randint_like(
        self,
        input: Param,
        low: Param = 0,
        high: Param = None,
        dtype: DType = None,
        key: Seed = None,
    ) -> jax.Array:
        """Whole numbers of `low` and above, and below `high`, in the shape of an array.

        **Arguments:**

        - `input`: the array.
        - `low`, `high`: the bounds; `high` is by default the greatest element of `input`.
        - `dtype`: the dtype that the numbers are turned into; by default that of `input`.
        """
        high = jnp.max(input) if high is None else high
        drawn = jr.randint(key, jnp.shape(input), low, high, int_dtype())
        return drawn.astype(_dtype_like(input, dtype))


def _dtype_like(input: Param, dtype: DType) -> DType:
    if dtype is not None:
        return dtype
    if hasattr(input, "dtype"):
        return jax.dtypes.canonicalize_dtype(input.dtype)
    if isinstance(input, bool):
        return bool
    return int_dtype() if isinstance(input, int) else float_dtype()

"""In the place of `jax.jit`, for most programs: traced as ever, and run by NumPy.

To compile a random program takes XLA a hundred times as long as to run it, and a fuzzer runs it
twice. Loops and branches are Python's, an operation that is not known here is JAX's. Arrays of
keys are arrays of `uint64`, so that they have the shapes that JAX gives them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import statemap._program as engine
from statemap._jax import is_base_trace


class Interpreted:
    """What `jax.jit(fn)` would be."""

    missing: dict[str, int] = {}  # how often JAX had to run an operation

    def __init__(self, fn: Any, **options: Any):
        self.jitted = jax.jit(fn, **options)

    def __call__(self, *args: Any) -> Any:
        leaves = jax.tree.leaves(args)
        if not is_base_trace() or any(isinstance(x, jax.core.Tracer) for x in leaves):
            return self.jitted(*args)
        traced = self.jitted.trace(*args)
        closed = traced.jaxpr
        with np.errstate(all="ignore"):
            out = _run(closed.jaxpr, [_in(x) for x in closed.consts], [_in(x) for x in leaves])
        out = [_out(x, v.aval) for x, v in zip(out, closed.jaxpr.outvars)]
        return jax.tree.unflatten(jax.tree.structure(traced.out_info), out)

    def trace(self, *args: Any) -> Any:
        return self.jitted.trace(*args)


class _Jax:
    """`jax`, as the engine's module sees it."""

    def __getattr__(self, name: str) -> Any:
        return Interpreted if name == "jit" else getattr(jax, name)


@contextlib.contextmanager
def interpreted(on: bool) -> Iterator[Any]:
    """Gives `jax.jit` or what stands for it, and makes the engine use that."""
    if not on:
        yield jax.jit
        return
    engine.jax = _Jax()
    try:
        yield Interpreted
    finally:
        engine.jax = jax


def _in(x: Any) -> Any:
    if hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return _wrap(np.asarray(jax.random.key_data(x)))
    return np.asarray(x, jax.typeof(x).dtype)


def _out(x: Any, aval: Any) -> Any:
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(_unwrap(x)))
    return jnp.asarray(np.asarray(x, aval.dtype))


def _wrap(data: Any) -> Any:
    return np.ascontiguousarray(data).view(np.uint64)[..., 0]


def _unwrap(keys: Any) -> Any:
    return np.ascontiguousarray(np.asarray(keys)[..., None]).view(np.uint32)


def _run(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, args))
    read = lambda v: _in(v.val) if hasattr(v, "val") else env[v]
    for eqn in jaxpr.eqns:
        given, name = [read(v) for v in eqn.invars], eqn.primitive.name
        if name in _PLAIN:
            out = [_PLAIN[name](*given)]
        elif name in _RULES:
            out = _RULES[name](eqn.params, given)
            out = out if isinstance(out, list) else [out]
        else:
            Interpreted.missing[name] = Interpreted.missing.get(name, 0) + 1
            given = [_out(x, v.aval) for x, v in zip(given, eqn.invars)]
            out = eqn.primitive.bind(*given, **eqn.params)
            out = [_in(x) for x in (out if eqn.primitive.multiple_results else [out])]
        env.update(zip(eqn.outvars, out))
    return [read(v) for v in jaxpr.outvars]


def _closed(name: str) -> Any:
    return lambda p, given: _run(p[name].jaxpr, [_in(x) for x in p[name].consts], given)


def _scan(p: Any, given: list[Any]) -> list[Any]:
    n, m = p["num_consts"], p["num_carry"]
    consts, carry, xs = given[:n], given[n : n + m], given[n + m :]
    found: list[Any] = [None] * p["length"]
    for k in reversed(range(p["length"])) if p["reverse"] else range(p["length"]):
        out = _closed("jaxpr")(p, [*consts, *carry, *(x[k] for x in xs)])
        carry, found[k] = out[:m], out[m:]
    return [*carry, *(np.stack(ys) for ys in zip(*found))]


def _while(p: Any, given: list[Any]) -> list[Any]:
    n, m = p["cond_nconsts"], p["body_nconsts"]
    asks, does, carry = given[:n], given[n : n + m], given[n + m :]
    while np.any(go := np.asarray(_closed("cond_jaxpr")(p, [*asks, *carry])[0])):
        new = _closed("body_jaxpr")(p, [*does, *carry])
        # Lanes of a mapped loop that are done keep what they have.
        wide = (np.reshape(go, go.shape + (1,) * (np.ndim(x) - go.ndim)) for x in new)
        carry = [np.where(w, x, y) for w, x, y in zip(wide, new, carry)]
    return carry


def _cond(p: Any, given: list[Any]) -> list[Any]:
    at = min(max(int(given[0]), 0), len(p["branches"]) - 1)
    return _closed("branch")({"branch": p["branches"][at]}, given[1:])


def _threefry(keys: Any, high: Any, low: Any) -> tuple[Any, Any]:
    """Threefry 2x32 with 20 rounds."""
    data = _unwrap(keys)
    k = [data[..., 0], data[..., 1]]
    k = [k[0], k[1], k[0] ^ k[1] ^ np.uint32(0x1BD11BDA)]
    x, y = high + k[0], low + k[1]
    for i in range(5):
        for r in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x = x + y
            y = ((y << np.uint32(r)) | (y >> np.uint32(32 - r))) ^ x
        x, y = x + k[(i + 1) % 3], y + k[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


def _counts(keys: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    count = np.arange(int(np.prod(shape)), dtype=np.uint32).reshape(shape)
    return np.asarray(keys).reshape(np.shape(keys) + (1,) * len(shape)), count


def _split(p: Any, given: list[Any]) -> Any:
    keys, count = _counts(given[0], p["shape"])
    return _wrap(np.stack(_threefry(keys, np.zeros_like(count), count), -1))


def _bits(p: Any, given: list[Any]) -> Any:
    keys, count = _counts(given[0], p["shape"])
    high, low = _threefry(keys, np.zeros_like(count), count)
    return (high ^ low).astype(f"uint{p['bit_width']}")


def _broadcast(p: Any, given: list[Any]) -> Any:
    shape = [1] * len(p["shape"])
    for at, n in zip(p["broadcast_dimensions"], np.shape(given[0])):
        shape[at] = n
    return np.broadcast_to(np.reshape(given[0], shape), p["shape"])


def _slice(p: Any, given: list[Any]) -> Any:
    steps = p["strides"] or (1,) * np.ndim(given[0])
    return given[0][tuple(map(slice, p["start_indices"], p["limit_indices"], steps))]


def _at(x: Any, starts: Any, sizes: Any) -> tuple[slice, ...]:
    fit = lambda i, n, size: min(max(int(i) + (size if i < 0 else 0), 0), size - n)
    at = [fit(i, n, size) for i, n, size in zip(starts, sizes, np.shape(x))]
    return tuple(slice(i, i + n) for i, n in zip(at, sizes))


def _update(p: Any, given: list[Any]) -> Any:
    out = np.array(given[0])
    out[_at(out, given[2:], np.shape(given[1]))] = given[1]
    return out


def _iota(p: Any, given: list[Any]) -> Any:
    count = np.arange(p["shape"][p["dimension"]], dtype=p["dtype"])
    shape = [n if i == p["dimension"] else 1 for i, n in enumerate(p["shape"])]
    return np.broadcast_to(count.reshape(shape), p["shape"])


def _pick(which: Any, *cases: Any) -> Any:
    return np.choose(np.asarray(which, np.int32), cases) if len(cases) != 2 else (
        np.where(np.asarray(which, bool), cases[1], cases[0])
    )  # fmt: skip


def _by(fn: Any, *names: str) -> Any:
    return lambda p, given: fn(*given, *(p[n] for n in names))


_PLAIN = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "neg": np.negative, "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "floor": np.floor,
    "abs": np.abs, "sign": np.sign, "max": np.maximum, "min": np.minimum, "rem": np.fmod,
    "lt": np.less, "gt": np.greater, "le": np.less_equal, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "not": np.invert, "select_n": _pick, "copy": np.copy,
    "shift_right_logical": np.right_shift, "shift_left": np.left_shift,
    "random_wrap": _wrap, "random_unwrap": _unwrap,
    "square": np.square, "clamp": lambda low, x, high: np.clip(x, low, high),
}  # fmt: skip
_RULES = {
    "jit": _closed("jaxpr"),
    "pjit": _closed("jaxpr"),
    "closed_call": _closed("call_jaxpr"),
    "custom_jvp_call": _closed("call_jaxpr"),
    "custom_vjp_call": _closed("call_jaxpr"),
    "checkpoint": lambda p, given: _run(p["jaxpr"], (), given),
    "remat2": lambda p, given: _run(p["jaxpr"], (), given),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "random_split": _split,
    "random_bits": _bits,
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "dynamic_slice": lambda p, given: given[0][_at(given[0], given[1:], p["slice_sizes"])],
    "dynamic_update_slice": _update,
    "iota": _iota,
    "optimization_barrier": lambda p, given: list(given),
    "reshape": _by(np.reshape, "new_sizes"),
    "transpose": _by(np.transpose, "permutation"),
    "squeeze": _by(np.squeeze, "dimensions"),
    "concatenate": lambda p, given: np.concatenate(given, p["dimension"]),
    "stack": lambda p, given: np.stack(given, p["axis"]),
    "stop_gradient": lambda p, given: given[0],
    "reduce_sum": lambda p, given: np.sum(given[0], p["axes"], given[0].dtype),
    "reduce_or": _by(np.any, "axes"),
    "reduce_and": _by(np.all, "axes"),
    "integer_pow": lambda p, given: given[0] ** given[0].dtype.type(p["y"]),
    "convert_element_type": lambda p, given: np.asarray(given[0]).astype(p["new_dtype"]),
    "bitcast_convert_type": lambda p, given: np.asarray(given[0]).view(p["new_dtype"]),
}

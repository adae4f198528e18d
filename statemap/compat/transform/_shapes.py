"""Transforms that run a function as it is, in a frame: `eval_shape`, `checkpoint`, `shard_map`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from .._discover import Discovery
from .._frames import Frame, in_turn, peek, write_all
from .._lift import capture, read_all, run
from ._arguments import counted, left_out, MISSING


def eval_shape(f: Callable, *args: Any, return_state_shapes: bool = False, **kwargs: Any) -> Any:
    """[brainstate's `eval_shape`](https://brainstate.readthedocs.io). Cells that are made hold
    `jax.ShapeDtypeStruct`s, so that `eval_shape(Model)` gives a model without numbers, of which
    `eval_shape(model, x)` and `jit(model).lower(x)` can be asked for.
    """
    frames: list[Frame] = []
    others: dict[int, Any] = {}
    treedefs: list[Any] = []
    shapes = [cell for cell in Discovery(f).paths if _is_shape(peek(cell))]

    def pure(args: Any, kwargs: Any, values: Any) -> Any:
        frames.append(frame := Frame(shapes, values))

        def call() -> Any:
            return jax.tree.flatten(f(*args, **kwargs)), [c.value for c in frame.created]

        (leaves, treedef), made = frame.run(call)
        arrays = {i: x for i, x in enumerate(leaves) if _is_output(x)}
        others.update({i: x for i, x in enumerate(leaves) if i not in arrays})
        treedefs.append(treedef)
        values = {cell: frame.get(cell) for cell in {**frame.read, **frame.written}}
        frame.release()
        return arrays, made, list(values.values())

    arrays, made, used = jax.eval_shape(pure, args, kwargs, list(map(peek, shapes)))
    frame = frames[-1]
    for cell, value in zip(frame.created, made):
        cell._held = value
        cell._born()  # now: not in the frame
    out = jax.tree.unflatten(treedefs[-1], [v for _, v in sorted({**arrays, **others}.items())])
    cells = {**frame.read, **frame.written}
    return (dict(zip(cells, used)), out) if return_state_shapes else out


def _is_shape(value: Any) -> bool:
    return any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(value))


def _is_output(x: Any) -> bool:
    return isinstance(x, (jax.Array, int, float, complex)) or hasattr(x, "dtype")


def checkpoint(
    fun: Any = MISSING, *, prevent_cse: bool = True, policy: Callable[..., bool] | None = None,
    static_argnums: int | tuple[int, ...] = (),
) -> Callable:  # fmt: skip
    """[brainstate's `checkpoint`](https://brainstate.readthedocs.io)."""
    options: dict[str, Any] = {"policy": policy, "static_argnums": static_argnums}
    if left_out(fun):
        return lambda f: checkpoint(f, prevent_cse=prevent_cse, **options)

    @functools.wraps(fun, updated=())
    @in_turn
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        frames: list[Frame] = []

        def pure(*args: Any, **kwargs: Any) -> Any:
            frames.append(Frame(open=True))
            return run(fun, frames[-1], *args, **kwargs)

        out, new = jax.checkpoint(pure, prevent_cse=prevent_cse, **options)(*args, **kwargs)
        write_all(tuple(frames[-1].written), new)
        return out

    return checkpointed


remat = checkpoint


def shard_map(
    fun: Callable, mesh: Any, in_specs: Any, out_specs: Any, *, state_in_specs: Any = None,
    state_out_specs: Any = None, check_vma: bool = True,
) -> Callable:  # fmt: skip
    """[brainstate's `shard_map`](https://brainstate.readthedocs.io). Cells are replicated,
    unless they have a spec: one for all, or one by cell.
    """

    def spec(cell: Any, specs: Any) -> Any:
        specs = specs.get(cell) if isinstance(specs, dict) else specs
        return PartitionSpec() if specs is None else specs

    def place(value: Any, spec: Any) -> Any:
        return jax.device_put(value, NamedSharding(mesh, spec))

    @functools.wraps(fun, updated=())
    @in_turn
    def mapped(*args: Any, **kwargs: Any) -> Any:
        if isinstance(in_specs, PartitionSpec) or not isinstance(in_specs, (tuple, list)):
            of_args = (in_specs,) * len(args)
        else:
            of_args = tuple(in_specs)
        if len(of_args) != len(args):
            raise ValueError(f"`in_specs` has {len(of_args)} entries, and there {counted(args)}.")
        program = capture(fun, args, kwargs, axis_env=tuple(mesh.shape.items()))
        of_cells = [spec(cell, state_in_specs) for cell in program.cells]

        def pure(values: Any, args: Any) -> Any:
            return run(fun, Frame(program.cells, values), *args, **kwargs)

        of_new = [spec(cell, state_out_specs) for cell in program.written]
        specs = {"in_specs": (of_cells, of_args), "out_specs": (out_specs, of_new)}
        placed = [*map(place, read_all(program.cells), of_cells)], tuple(map(place, args, of_args))
        try:
            out, new = jax.shard_map(pure, mesh=mesh, check_vma=check_vma, **specs)(*placed)
        except (TypeError, ValueError) as error:
            if "shape" in str(error) and PartitionSpec() in of_cells:
                error.add_note(
                    "A cell is replicated unless it has a spec: each shard sees it whole, beside "
                    "its own rows of the arguments. For its own rows of the cell: "
                    "`state_in_specs={cell: P('x')}`, and `state_out_specs` if it is written."
                )
            raise
        write_all(program.written, new)
        return out

    return mapped

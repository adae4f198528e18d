"""Smaller programs that fail in the same way."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from .programs import Map, Op, Program


def shrink(program: Program, fails: Any) -> Program:
    """The program with all that can go taken out of it.

    **Arguments:**

    - `fails`: whether a program still fails.
    """
    while True:
        for smaller in _smaller(program):
            if fails(smaller):
                program = smaller
                break
        else:
            return program


def _smaller(program: Program) -> Iterator[Program]:
    with_map = lambda **new: dataclasses.replace(
        program, map=dataclasses.replace(program.map, **new)
    )
    for body in _bodies(program.map.body):
        yield with_map(body=body)
    if program.options and program.way != "pmap":
        yield dataclasses.replace(program, options=())
    for name in ("ins", "outs"):
        entries = getattr(program.map, name)
        for i in range(len(entries)):
            yield with_map(**{name: entries[:i] + entries[i + 1 :]})
    if program.way not in ("plain", "new", "pmap"):
        yield dataclasses.replace(program, way="plain")


def _bodies(ops: tuple[Op, ...]) -> Iterator[tuple[Op, ...]]:
    for i, op in enumerate(ops):
        yield ops[:i] + ops[i + 1 :]
        for inside in _inside(op):
            yield ops[:i] + inside + ops[i + 1 :]
        for smaller in _ops(op):
            yield ops[:i] + (smaller,) + ops[i + 1 :]


def _inside(op: Op) -> list[tuple[Op, ...]]:
    return [x for x in op[1:] if isinstance(x, tuple)]


def _ops(op: Op) -> Iterator[Op]:
    for k, x in enumerate(op):
        if isinstance(x, tuple):
            for body in _bodies(x):
                yield (*op[:k], body, *op[k + 1 :])
        elif isinstance(x, Map):
            for body in _bodies(x.body):
                yield (*op[:k], dataclasses.replace(x, body=body), *op[k + 1 :])
            for outs in [()] if x.outs else []:
                yield (*op[:k], dataclasses.replace(x, outs=outs), *op[k + 1 :])

"""One call, the general way: from the parts of a call to the program for it, and its results."""

from collections.abc import Sequence
from typing import Any

import jax

from ._axes import along, argument_axes, argument_labels
from ._container import AnyFrame, refuse_unhashable
from ._devices import Devices
from ._donation import claim, disclaim
from ._exact import exact
from ._jax import is_base_trace, is_ref, placement, trace_context, type_of
from ._options import Options
from ._program import Program, Retrace
from ._programs import Programs
from ._refs import GivenRefs
from ._run import Run
from ._settings import now
from ._signature import Function, Inputs, mark_static, split_leaves, static_objects
from ._slots import Slots
from ._states import States
from ._values import refuse_labels, refuse_recursive
from ._watch import facts_of, static_contents


class Call:
    """The parts of a call. What is abstract of them is the signature, and keys the programs."""

    def __init__(
        self,
        options: Options,
        function: Function,
        programs: Programs,
        static: tuple[frozenset[int], frozenset[str]],
        slots: Slots,
        values: Sequence[Any],
        frame: AnyFrame,
        extra: tuple[Any, ...],
        args: tuple,
        kwargs: dict[str, Any],
    ):
        """**Arguments:**

        - `options`, `function`, `programs`, `static`: of the mapping: what it was given, its
            function, where the programs are kept, and which arguments are static.
        - `slots`, `values`, `frame`, `extra`: of the container, as `pack` gives them. Of the
            values, only the touched ones are looked up if the program is known.
        - `args`, `kwargs`: the arguments.
        """
        self.options, self.function, self.programs = options, function, programs
        self.slots, self.values, self.frame = slots, values, frame
        if options.has_static:
            args, kwargs = mark_static(args, kwargs, *static)
        for k, arg in (*enumerate(args), *kwargs.items()):
            refuse_recursive(arg, f"Argument {k}")
            if type(arg) is list and arg and all(type(x) in (int, float, complex) for x in arg):
                self._refuse_list(k, arg)
        leaves, treedef = jax.tree.flatten((args, kwargs))
        arrays, statics = split_leaves(leaves, args, kwargs)
        self.refs = None
        if statics is not None and any(map(is_ref, leaves)):
            self.refs = GivenRefs(
                leaves, argument_labels(function.rebuild(function.arrays), args, kwargs)
            )
        self.inputs = (treedef, statics, len(extra), options.donate_argnums)
        self.devices = self._devices(args, kwargs, arrays)
        self.arrays = [*arrays, *extra, *function.arrays]
        if self.devices is not None and self._is_explicit(self.devices):
            self._lay_over(self.devices)
        self.placed: dict[int, Any] = {}  # the values that went in, where the lanes are
        self.structure = (
            slots,
            frame,
            treedef,
            statics and exact(statics),
            facts_of(static_objects(args, kwargs, statics)),
            static_contents((*args, *kwargs.values())),
            self.devices,
            function.structure,
        )

    def run(self, context: States | None) -> tuple[Program, Any, tuple[Any, ...]]:
        """Runs the call.

        **Arguments:**

        - `context`: the one whose memory the call may take.

        **Returns:**

        The program, the output, and the new values of the states that it changed.
        """
        program = self._last()
        if program is not None:
            try:
                return program, *self._run_refs(program, context)
            except Retrace:  # other shapes, or another trace context
                pass
        program = self.program()
        return program, *self._run_refs(program, context)

    def _run_refs(self, program: Program, context: States | None) -> tuple[Any, tuple[Any, ...]]:
        if self.refs is None:
            return self._run(program, context)
        self.refs.refuse_closed_over(program.constants)
        (out, finals), new = self._run(program, context)
        self.refs.write_back(program.ref_is_mapped, finals, program.ref_is_written)
        return out, new

    def _run(self, program: Program, context: States | None) -> tuple[Any, tuple[Any, ...]]:
        donates = program.donates and is_base_trace()
        given = self._given(program, donates)
        if not donates:
            return program.jitted(*given)
        program.refuse_aliases(*given)
        if context is None:
            return program.donating(*given)
        before = claim(context)
        try:
            return program.donating(*given)
        except BaseException:
            disclaim(context, before)
            raise

    def traced(self) -> jax.stages.Traced:
        """What `run` would run."""
        program = self.program()
        donates = program.donates and is_base_trace()
        jitted = program.donating if donates else program.jitted
        return jitted.trace(*self._given(program, donates))

    def _given(self, program: Program, donates: bool) -> tuple[Any, ...]:
        if program.devices is None and not program.donates:
            return tuple(map(self.values.__getitem__, program.kept)), tuple(self.arrays)
        self.placed = program.place_states(self.values)
        return program.given(self.placed, program.place_arrays(self.arrays), donates)

    def program(self) -> Program:
        """The program for this signature, made if there is none."""
        values = tuple(self.values)
        try:
            types = tuple(map(type_of, [*jax.tree.leaves(values), *self.arrays]))
        except TypeError:
            refuse_labels(self.slots, values, "the context")
            raise
        key: Any = (self.structure, types, trace_context())
        fresh: list[Program] = []

        def make() -> tuple[Program, bool]:
            run = Run(
                self.options,
                self.devices,
                self.function,
                Inputs(*self.inputs),
                self.slots,
                self.frame,
                values,
                self.arrays,
            )
            program = Program(run)
            fresh.append(program)
            return program, program.may_be_kept

        program = self.programs.made.get(key) or self.programs.made.make(key, make)
        while program.settings and not fresh and not program.holds():
            key = (key, now(program.settings))  # the next, for these settings
            program = self.programs.made.get(key) or self.programs.made.make(key, make)
        if program.may_be_kept:
            before = self.programs.last.get(self.structure)
            if before is not None and before is not program:
                program.is_alone = before.is_alone = False
            self.programs.last.replace(self.structure, program)
        return program

    def _last(self) -> Program | None:
        """The program that was used last for a call of this structure."""
        try:
            program = self.programs.last.get(self.structure)
        except TypeError:
            refuse_unhashable(self.frame, self.inputs[1])
            raise
        if program is None or not program.fits(self.values):
            return None
        if program.settings and not program.holds():
            return None
        if program.is_alone or self.devices is not None:
            return program  # asked for other types, it refuses to be traced again
        given = [self.values[i] for i in program.kept + program.donated]
        return program if program.takes(given, self.arrays) else None

    def _refuse_list(self, k: int | str, arg: list[Any]) -> None:
        """Refuses a list of numbers where an array is meant: as a pytree it has no axis."""
        axes = self.options.in_axes if isinstance(k, int) else 0
        if isinstance(axes, (list, tuple)) and isinstance(k, int) and k < len(axes):
            axes = axes[k]
        axis = axes
        if isinstance(axis, int):
            raise TypeError(
                f"Argument {k} is a list of {len(arg)} numbers, which is no array and has no axis "
                f"{axis} to be mapped on.\n"
                "Wrong:  mapped(states, [1.0, 2.0])\n"
                "Right:  mapped(states, jnp.array([1.0, 2.0]))\n"
                "If every lane is to get the list, give it None in `in_axes`."
            )

    def _is_explicit(self, devices: Devices) -> bool:
        """Whether moving what goes in changes its types."""
        if devices.is_explicit:
            return True
        given = [*jax.tree.leaves(tuple(self.values)), *self.arrays]
        return any(placement(jax.typeof(x)) is not None for x in given)

    def _lay_over(self, devices: Devices) -> None:
        """Moves all that goes in to the mesh before its types are taken."""
        entries = self.options.state_in.assign(self.slots, tuple(self.values))
        specs = self.slots.specs
        values = []
        for entry, spec, value in zip(entries, specs, self.values):
            axis = None if entry is None else entry.axis
            put = lambda x, a=axis, t=spec.trailing_axes: devices.place(x, along(a, x, t))
            values.append(jax.tree.map(put, value))
        self.values = tuple(values)
        inputs = Inputs(*self.inputs)
        axes = argument_axes(self.options.in_axes, *inputs.arguments(self.arrays))
        axes = [a for j, a in enumerate(axes) if inputs.is_traced(j)]
        axes += [None] * (len(self.arrays) - len(axes))
        self.arrays = [devices.place(x, along(a, x, 0)) for x, a in zip(self.arrays, axes)]

    def _devices(self, args: tuple, kwargs: dict[str, Any], arrays: list[Any]) -> Devices | None:
        """The devices of the lanes: those of the mapping, or where the arrays lie already."""
        devices = self.options.devices
        if devices is None or not devices.adopts:
            return devices

        def axes() -> tuple[list[Any], list[Any]]:
            inputs = Inputs(*self.inputs)
            own = argument_axes(self.options.in_axes, args, kwargs)
            found = [a for j, a in enumerate(own) if inputs.is_traced(j)]
            given = list(arrays)
            entries = self.options.state_in.assign(self.slots, tuple(self.values))
            for spec, entry, value in zip(self.slots.specs, entries, self.values):
                axis = None if entry is None else entry.axis
                leaves = jax.tree.leaves(value)
                given += leaves
                found += [along(axis, x, spec.trailing_axes) for x in leaves]
            return given, found

        return devices.adopt([*arrays, *jax.tree.leaves(tuple(self.values))], axes)

"""The table of the concepts page: what a mapping does with each state, and why."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ._errors import BatchAxisError
from ._filters import is_internal, show_filter
from ._rules import Reduce, Restore
from ._state_axes import Listed


class Row(NamedTuple):
    """What a mapping does with one state.

    `axis_in` and `axis_out` are an int, `"shared"`, or `"split"` for a random state that gives
    each lane a key of its own. `result` says what becomes of the value: `"kept"` as it went in,
    one new value that is `"shared"`, the values of the lanes, `"stacked"`, or these `"reduced"` to
    one; or `"moved on"`, for a random state that was split.
    """

    path: str
    kind: str
    shape: str
    read: bool
    written: bool
    axis_in: int | str
    axis_out: int | str
    why: str
    drawn: bool = False
    result: str = "kept"
    unexpected: bool = False  # the policy placed it
    how: str | None = None  # it is reduced: a word of `Reduce`, or "function"

    @property
    def needs_old(self) -> bool:
        """Whether the new value is made of the old one, besides what lanes do."""
        return self.result == "moved on" or self.how in ("changes", "function")

    def to(self, result: str, axis_out: int | str, why: str, unexpected: bool = False) -> "Row":
        """The row with what becomes of the value."""
        return self._replace(
            result=result,
            written=result != "kept",
            axis_out=axis_out,
            why=why,
            unexpected=unexpected,
        )


def asks(axis_in: int | str, goes: Listed | None, written: bool, is_alone: bool) -> bool:
    """Whether it matters for a state if its value differs between lanes.

    **Arguments:**

    - `axis_in`: from the state's row.
    - `goes`: the entry of `state_out_axes` that matches it.
    - `is_alone`: whether the state never has lanes.
    """
    if goes is not None and goes.rule is not None:
        return False
    if is_alone:
        return written
    if goes is None:
        return written and axis_in == "shared"
    return goes.axis is None and (written or isinstance(axis_in, int))


def place(
    row: Row, goes: Listed | None, differs: bool, policy: str, is_alone: bool, lanes: int
) -> Row:
    """The row of a state, with where its value goes.

    **Arguments:**

    - `row`: what is known of it: `written` tells whether the function replaced the value, or if
        it is a split random state whether the function used it.
    - `goes`: as for `asks`.
    - `differs`: whether the value depends on the lane, as seen from this map.
    - `is_alone`: whether the state never has lanes.
    - `lanes`: how many there are.

    **Raises:**

    `BatchAxisError` where lanes differ and one shared value is asked for.
    """
    path, axis_in, written = row.path, row.axis_in, row.written
    if goes is not None and goes.rule is Restore:
        out = "shared" if axis_in == "split" else axis_in
        again = "; each call draws the same numbers" if row.drawn else ""
        # `written` says what the function does, within the call.
        return row._replace(axis_out=out, why=f"comes out as it came in{again}{_by(goes)}")
    if goes is not None and isinstance(goes.rule, Reduce):
        if axis_in == "shared" and not written:
            return row.to("kept", "shared", "shared, not written")
        why = f"{goes.rule!r} over the lanes{_by(goes)}"
        # The rule itself would keep the user's function alive as long as the program.
        how = goes.rule.how if isinstance(goes.rule.how, str) else "function"
        return row.to("reduced", "shared", why)._replace(how=how)
    if axis_in == "split":
        if not written:
            return row.to("kept", "shared", "shared, not used")
        if goes is None or goes.axis is None:
            why = "a key for each lane; the state itself moves on once"
            return row.to("moved on", "shared", why)
        return row.to("stacked", goes.axis, _listed(goes))
    if axis_in == "shared" and not written:
        return row.to("kept", "shared", "shared, not written")
    if is_alone and differs:
        raise BatchAxisError(
            f"The state `{path}` is a NonBatchState, of which all lanes share one value, and the "
            "function writes a value to it that depends on the lane. Reduce it over the lanes "
            "first (`jax.lax.pmean(value, axis_name)`), or make it a state of another kind."
        )
    if goes is not None and goes.axis is None:
        if differs:
            raise BatchAxisError(
                f"The state `{path}` is listed under None in `state_out_axes`, so that all lanes "
                "share one value, but "
                + ("it is written" if written else "it is mapped and its values come back")
                + " with a value that depends on the lane. Reduce it over the lanes first "
                "(`jax.lax.pmean(value, axis_name)`), or give it an axis: "
                "`state_out_axes={0: ...}`."
            )
        if not lanes and axis_in == "shared":
            return row.to("kept", "shared", _NO_LANES)
        return row.to("shared", "shared", "the same in every lane, out axis None")
    if goes is not None and goes.axis is not None and not is_alone:
        if not written and axis_in == goes.axis:
            return row.to("kept", axis_in, "mapped, not written")
        return row.to("stacked", goes.axis, _listed(goes))
    if axis_in != "shared":
        if not written:
            return row.to("kept", axis_in, "mapped, not written")
        return row.to("stacked", axis_in, "written, stays on the axis it came in")
    if not differs and not lanes:
        return row.to("kept", "shared", _NO_LANES)
    if not differs:
        return row.to("shared", "shared", "written alike in every lane")
    if policy == "raise":
        raise BatchAxisError(
            f"The state `{path}` is shared by all lanes, and the function writes a value to it "
            "that depends on the lane. Choose one:\n"
            f"  - keep a value for each lane: `state_out_axes={{0: ...}}` with a filter for it "
            "(and `state_in_axes`, if it has one already);\n"
            '  - combine the lanes\' values into one: `state_out_axes={sm.Reduce("mean"): ...}`, '
            "or before they are written, `jax.lax.pmean(value, axis_name)`;\n"
            "  - if the value only matters within a call, let it come out as it came in: "
            "`state_out_axes={sm.Restore: ...}`;\n"
            "  - let such writes go to axis 0: `unexpected_out_state_mapping='ignore'`, or "
            "'warn'."
        )
    return row.to("stacked", 0, f"lanes differ, policy {policy!r}", unexpected=True)


_NO_LANES = "shared, and there are no lanes to write it"


def _listed(goes: Listed) -> str:
    return f"listed under {goes.axis} in `state_out_axes`{_by(goes)}"


def _by(goes: Listed) -> str:
    return "" if is_internal(goes.predicate) else f", {show_filter(goes.predicate)}"


def show_shapes(leaves: Sequence[Any]) -> str:
    """The dtypes and shapes of a value's arrays, for its row."""
    shown = [_shape(np.shape(x), jax.typeof(x).dtype) for x in leaves[:3]]
    return ", ".join(shown) + (f", ... ({len(leaves)} arrays)" if len(leaves) > 3 else "")


_shown: dict[Any, str] = {}


def _shape(shape: tuple[int, ...], dtype: Any) -> str:
    found = _shown.get((shape, dtype))
    if found is None:
        if len(_shown) > 4096:
            _shown.clear()
        struct = jax.ShapeDtypeStruct(shape, dtype)
        found = _shown[shape, dtype] = eqx.tree_pformat(struct, struct_as_array=True)
    return found

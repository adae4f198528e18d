"""The exceptions of brainstate, by its names."""

from .._errors import BatchAxisError as _BatchAxisError


class BrainStateError(Exception):
    """The base of the shim's own errors."""


class BatchAxisError(_BatchAxisError, BrainStateError):
    """Lanes are not where they are needed. Also a [`statemap.BatchAxisError`][] and a
    `ValueError`.
    """

    @classmethod
    def of(cls, error: _BatchAxisError) -> "BatchAxisError":
        """An error of the core under this name."""
        own = cls(*error.args)
        for note in getattr(error, "__notes__", ()):
            own.add_note(note)
        if "unexpected_out_state_mapping" in str(error):
            own.add_note(
                "brainstate 0.4 and later would do so by itself: "
                "`unexpected_out_state_mapping='auto'`, or for all mappings "
                "`statemap.compat.transform.set_default_policy('auto')`."
            )
        return own.with_traceback(error.__traceback__)


class TraceContextError(BrainStateError):
    """A cell is used under a transform that does not know of it."""

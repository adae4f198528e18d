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
        return own.with_traceback(error.__traceback__)


class TraceContextError(BrainStateError):
    """A cell is used under a transform that does not know of it."""

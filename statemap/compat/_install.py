"""Answering `import brainstate`, so that a script runs unchanged."""

import importlib
import sys


def install(layers: str | None = None) -> None:
    """Makes `import brainstate` import the shim, in this process, from now on. To be called
    before anything imports brainstate; the page "Moving from brainstate" has an example.

    **Arguments:**

    - `layers`: with `"brainstate"`, `import brainstate` imports the installed brainstate, all of
        it, and its states and transforms are the shim's; it may be imported before. What the
        shim has not is brainstate's own, its layers first of all.

    **Raises:**

    `RuntimeError` if brainstate itself is imported already: its states are not the shim's.
    `ImportError` with `layers`, if there is no brainstate.
    """
    if layers is not None:
        if layers != "brainstate":
            raise ValueError(f"`layers` is 'brainstate' or None, not {layers!r}.")
        if sys.modules.get("brainstate") is sys.modules["statemap.compat"]:
            uninstall()
        return importlib.import_module("statemap.compat.layers").install()
    present = sys.modules.get("brainstate")
    if present is not None and present is not sys.modules["statemap.compat"]:
        raise RuntimeError(
            "brainstate itself is imported already, and what was made with it can't be used with "
            "the shim. Call `statemap.compat.install()` first, before anything imports brainstate; "
            "or run the script with `python -m statemap.compat script.py`."
        )
    for name, module in list(sys.modules.items()):
        if name == "statemap.compat" or name.startswith("statemap.compat."):
            sys.modules[name.replace("statemap.compat", "brainstate", 1)] = module


def uninstall() -> None:
    """Takes `install` back: `import brainstate` finds what is installed under that name."""
    if "statemap.compat.layers" in sys.modules:
        sys.modules["statemap.compat.layers"].uninstall()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "brainstate" and module.__name__.startswith("statemap.compat"):
            del sys.modules[name]

"""Answering `import brainstate`, so that a script runs unchanged."""

import sys


def install() -> None:
    """Makes `import brainstate` import the shim, in this process, from now on. To be called
    before anything imports brainstate; the page "Moving from brainstate" has an example.

    **Raises:**

    `RuntimeError` if brainstate itself is imported already: its states are not the shim's.
    """
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
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "brainstate" and module.__name__.startswith("statemap.compat"):
            del sys.modules[name]

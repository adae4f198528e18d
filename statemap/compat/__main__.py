"""Runs a script that is written for brainstate: `python -m statemap.compat script.py [args]`."""

import argparse
import runpy
import sys
from pathlib import Path

from statemap.compat import install, transform


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m statemap.compat",
        description="Runs a script or module in which `import brainstate` is statemap's shim.",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="TARGET is a module")
    parser.add_argument(
        "--policy",
        help="what becomes of lane-dependent writes that no filter matches: 'raise', or 'auto' as "
        "in brainstate 0.4 and later; by default 'raise', and with --layers 'auto'",
    )
    parser.add_argument(
        "--layers",
        choices=["brainstate"],
        help="with 'brainstate', the installed brainstate with its layers, on statemap's engine",
    )
    parser.add_argument("target", metavar="TARGET", help="a script, or with -m a module")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args()
    try:
        install(layers=given.layers)
    except ModuleNotFoundError:  # which brainstate itself wants
        raise
    except ImportError as error:
        parser.error(str(error))
    if given.policy is not None:
        try:
            transform.set_default_policy(given.policy)
        except ValueError as error:
            parser.error(str(error))
    sys.argv = [given.target, *given.args]
    if given.module:
        sys.path.insert(0, "")
        runpy.run_module(given.target, run_name="__main__", alter_sys=True)
    else:
        if not Path(given.target).exists():
            parser.error(f"there is no file {given.target}")
        sys.path.insert(0, str(Path(given.target).resolve().parent))
        runpy.run_path(given.target, run_name="__main__")


if __name__ == "__main__":
    main()

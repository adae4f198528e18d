"""`python -m tests.fuzz 1000`: random programs against a plain loop over lanes."""

import argparse
import collections
import os
import random
import sys
import time
import traceback


# Before JAX starts: eight devices, and programs that are compiled fast rather than well.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)

import jax

from .generate import generate, WAYS
from .programs import Program
from .shrink import shrink
from .ways import Check


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("n", type=int, nargs="?", default=1000, help="how many programs")
    parser.add_argument("--seed", type=int, help="of the first program; by default a random one")
    parser.add_argument("--only", type=int, metavar="SEED", help="one program again, shown")
    parser.add_argument("--shrink", action="store_true", help="with --only, a smaller one, too")
    parser.add_argument("--way", choices=WAYS, help="only this around the mapping")
    parser.add_argument(
        "--compiled",
        type=float,
        default=0.06,
        help="the share of programs that XLA compiles, the others being interpreted",
    )
    return parser.parse_args()


def progress(n: int):
    try:
        from tqdm import tqdm

        return tqdm(range(n), mininterval=2, disable=None)
    except ImportError:
        return range(n)


def failure(program: Program) -> str | None:
    """What is wrong with it, without what differs between programs."""
    try:
        Check(program).run()
    except Exception as error:
        return f"{type(error).__name__} {str(error)[:40]}"


def main() -> int:
    given = options()
    ways = {given.way: 1.0} if given.way else WAYS
    if given.only is not None:
        first, n = given.only, 1
    else:
        first = random.randrange(2**30) if given.seed is None else given.seed
        n = given.n
    found: collections.Counter[str] = collections.Counter()
    again = f"--compiled {given.compiled}" + (f" --way {given.way}" if given.way else "")
    failed, start = [], time.time()
    for k in progress(n):
        seed = first + k
        program = generate(seed, given.compiled, ways)
        if given.only is not None:
            print(program)
        try:
            found[Check(program).run()] += 1
        except Exception as error:  # one that nobody expects is a mismatch, too
            failed.append(seed)
            line = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            print(f"\nseed {seed} ({program.way}): {line}\n  --only {seed} {again}", flush=True)
            if given.only is not None:
                traceback.print_exc()
            if given.shrink:
                wrong = failure(program)
                print(shrink(program, lambda p: failure(p) == wrong))
        if k % 500 == 499:  # what is compiled takes memory
            jax.clear_caches()
            if not sys.stderr.isatty():
                rate = (k + 1) / (time.time() - start)
                print(f"{k + 1} programs, {rate:.1f} a second", flush=True)
    print(f"from seed {first}: {dict(found)}, {n / (time.time() - start):.1f} a second")
    print(f"{n} programs, {len(failed)} mismatches")
    if failed:
        print(f"failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

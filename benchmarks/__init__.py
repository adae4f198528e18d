"""What statemap costs next to its peers and to code written by hand: `python -m benchmarks`.

Every case is a file, and runs in a process of its own:

- `_warm`: a warm call that reads and writes all states, with little and with much to compute
- `_partial`: a warm call that reads two states and writes one
- `_cold`: the first call: runs of the function, tracing, compiling
- `_scan`: a step inside a jitted scan of 1,000 steps, and the size of its program
- `_random`: one draw and ten draws a lane
- `_devices`: lanes laid over eight devices
- `_shim`: `statemap.compat` against brainstate, running the same text
- `_growth`: up to 10,000 states and 10^6 lanes; memory, donation and chunks

Everyone who takes part does the same work: a `Work` (`_work.py`), which `_libraries.py` puts into
each library's own form. `_contestants.py` checks that all come to the same numbers before
`_timing.py` lets them take turns. Nothing here asserts a time.
"""

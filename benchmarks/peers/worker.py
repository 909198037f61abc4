"""One library in a process of its own: `python -m benchmarks.peers.worker SPECIFICATION`, driven by lines of JSON.

The specification is JSON: the adapter, the problem's .npz, the form of the convolution, the sizes, the cores. The
worker answers {"versions", "tasks"}, then to each request {"task", "save", ...} with {"wall", "processor"}: seconds of
one call, its result written to the file `save` if that is given, unpacked outside the timed part.

An adapter is a module with `PACKAGES` (whose versions are told) and `tasks(problem, sizes, conv)`, which gives for each
task it supports (run, read): `run(**request)` is timed, `read(result)` makes arrays in the layout of `jax_network`.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    specification = json.loads(sys.argv[1])
    if specification["cores"]:
        os.sched_setaffinity(0, specification["cores"])  # before anything counts the cores

    import numpy as np

    adapter = importlib.import_module(f"benchmarks.peers.{specification['adapter']}")
    problem = dict(np.load(specification["problem"]))
    tasks = adapter.tasks(problem, specification["sizes"], specification["conv"])
    found = {name: importlib.metadata.version(name) for name in adapter.PACKAGES}
    print(json.dumps({"versions": found, "tasks": list(tasks)}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        run, read = tasks[request.pop("task")]
        save = request.pop("save", None)
        wall, processor = time.perf_counter(), time.process_time()
        result = run(**request)
        times = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        if save:
            np.savez(save, **read(result))
        print(json.dumps(times), file=answers, flush=True)


if __name__ == "__main__":
    main()

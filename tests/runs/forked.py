"""A process that has imported the package and forks a command line for each request: real processes, started at once.

Requests are lines of JSON on stdin, answers lines on stdout: ``{"args", "out", "cwd", "environment"}`` starts
``python cli.py ARGS``, or ``main(ARGS)`` of a module of the tests that comes first, and answers its process id;
``{"wait": id}`` answers its return code, negative for a signal.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any


def child(request: dict[str, Any], script: str) -> None:
    from ickd_pl.cli import main

    if request["args"][0].startswith("tests."):
        main = import_module(request["args"].pop(0)).main
    os.setsid()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    for number, end in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{request['out']}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = [script, *request["args"]]
    if "SIGNAL_IN_PACK" in os.environ:  # a benchmark takes no callbacks
        from ickd_pl.benchmark import runner
        from tests.runs.faults import sender

        when, *signals = os.environ["SIGNAL_IN_PACK"].split()
        runner.train_pack = partial(runner.train_pack, callbacks=[sender(when, signals)])
    code: Any = 1
    try:
        code = main(request["args"])
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code or 0))


def serve() -> None:
    repository = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(repository)]
    import torch

    import ickd_pl.benchmark.runner
    import ickd_pl.cli  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            child(request, str(repository / "cli.py"))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()

"""Fork ranks from a process that has already imported the libraries, which takes five seconds of CPU time.

    python rank_server.py < REQUESTS

Requests and answers are lines of JSON. ``{"words", "environment", "folder", "log"}`` starts a process and returns its
process id; ``{"poll": PID}`` returns its exit code, or null while it runs. The end of the input kills all processes.

``hmt_ds`` is imported by each rank and not by the server, so that a break in the ``sitecustomize.py`` on the rank's
PYTHONPATH comes first, as in a new interpreter.
"""

import gc
import importlib
import json
import os
import random
import runpy
import signal
import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

LIBRARIES = (
    "datasets",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # imported by each engine, with all of torch's compiler
    "distutils.ccompiler",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "peft.tuners.lora",
    "pydantic",
    "rich.syntax",
    "sentencepiece.sentencepiece_model_pb2",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "yaml",
)


def import_libraries() -> None:
    """Import all of LIBRARIES."""
    del sys.path[0]  # this folder: each rank puts its own first
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # the ranks' garbage collector skips these objects, and does not copy their memory pages


def serve(answers: int) -> dict[str, Any] | None:
    """Answer requests until the input ends. In a forked process, return the request that started it."""
    running = set()
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "poll" in request:
            ended, status = os.waitpid(request["poll"], os.WNOHANG)
            running.discard(ended)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        elif answer := os.fork():
            running.add(answer)
        else:
            os.close(answers)
            return request
        os.write(answers, f"{json.dumps(answer)}\n".encode())
    for process in running:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return None


def become(words: list[str], environment: dict[str, str], folder: str, log: str) -> None:
    """Run ``-m MODULE WORDS`` or ``SCRIPT WORDS`` as a new interpreter would."""
    for file, mode, streams in ((os.devnull, os.O_RDONLY, (0,)), (log, os.O_WRONLY | os.O_APPEND, (1, 2))):
        opened = os.open(file, mode)
        for stream in streams:
            os.dup2(opened, stream)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # forked processes share the state of these generators, new interpreters do not
    random.seed()
    importlib.import_module("numpy").random.seed()

    more = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = more
    if PathFinder.find_spec("sitecustomize", more):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    is_module, sys.argv = words[0] == "-m", words[words[0] == "-m" :]
    sys.path.insert(0, folder if is_module else str(Path(words[0]).parent))
    if is_module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends pytest, which ends this
    answers = os.dup(1)
    os.dup2(2, 1)  # libraries print while they are imported
    import_libraries()
    if request := serve(answers):
        become(**request)

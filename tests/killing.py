"""A process that imports setwise once and forks a real command for each attempt, which ends as it is told to.

python killing.py '[{"end": "step", "at": 17, "argv": ["train", ...]}, ...]' prints the status of each attempt, as a
shell would (137: killed), as JSON on the last line. It holds no thread when it forks, which a test's process may.
"""

import json
import os
import signal
import sys

import torch

from setwise import checkpoints, run, work
from setwise.cli import main

torch.set_num_threads(1)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number, original, last):
    """``original``, but its call ``number`` (from 0) is ``last``."""
    calls = iter(range(1_000_000))
    return lambda *args, **kwargs: (last if next(calls) == number else original)(*args, **kwargs)


def half_written(path, buffer):
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    die()


def between_the_moves(*args):
    die()


def end_at(end, number):
    if end == "step":  # after the backward pass, before the update
        run.Classification.on_before_optimizer_step = at_call(number, lambda *args: None, lambda *args: die())
    elif end == "writing":
        checkpoints._write = at_call(number, checkpoints._write, half_written)
    elif end == "moving":  # calls of os.replace: the old checkpoint away, the new one in
        checkpoints.os = type("os", (), {"replace": at_call(number, os.replace, between_the_moves), "fsync": os.fsync})
    elif end == "evaluating":  # all trained, nothing evaluated
        work.scores_of = lambda *args: die()


def attempt(end, at, argv):
    child = os.fork()
    if not child:
        end_at(end, at)
        os._exit(main(argv))
    _, status = os.waitpid(child, 0)
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    print(json.dumps([attempt(**one) for one in json.loads(sys.argv[1])]))

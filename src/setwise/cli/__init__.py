"""The command line: the only place that composes recipes, runs and reports.

``main`` looks at the verb, imports what that verb needs and nothing else, and turns the library's errors into one
sentence and an exit status: 0 done, 1 the run failed (or the audit found a dependence), 2 wrong usage or input, 130
interrupted, 143 stopped by SIGTERM (``--resume`` continues).
"""

import sys
from collections.abc import Sequence

from setwise import __version__
from setwise.errors import RunError, SetwiseError, Stopped, choose

__all__ = ["main"]

VERBS = {
    "list": "what there is: recipes, datasets, backbones, criteria, transforms, tasks",
    "data": "where a data set comes from, what it must look like, and whether yours does",
    "train": "train a recipe, a run's recipe.yaml, or continue a run",
    "test": "evaluate a trained run again",
    "predict": "classify images or folders with a trained run, as CSV",
    "compare": "what learning from each other brings: plain, related and control over the same seeds",
    "audit": "whether a prediction depends on its batch-mates, and at which module they come in",
    "show": "what a network attended to, patches, support images or batch-mates, as pictures and a page",
    "collapse": "whether new classes lie beside their own kind in the features of few-shot runs",
    "rank": "few-shot runs side by side, a column a data set, and their mean rank",
    "profile": "what models cost: parameters, multiply-adds, peak memory, images a second",
    "report": "write the HTML report of a run or a comparison again",
    "export": "write the plain model as safetensors, torch.export or ONNX",
}

STOPPED = 128 + 15
"""What a shell reports of a command that SIGTERM ended, so that a scheduler sees that there is more to do."""

HELP = """setwise {version}: attention over sets of samples

usage: setwise VERB ... [--group.field value]

{verbs}

Start here:
  setwise compare digits-lt                    the embedded example, a few minutes on two cores
  setwise train image-folder --data.root DIR   your own images: DIR/train/<class>/*.jpg, DIR/val/<class>/*.jpg
  setwise VERB --help                          what a verb takes
  setwise train NAME --help                    all fields of a recipe, with its values
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: verb and arguments; None: those of the process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(version=__version__, verbs="\n".join(f"  {n:<9}{text}" for n, text in VERBS.items())))
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    try:
        choose(arguments[0], VERBS, "verb")
        from setwise.cli import verbs

        return getattr(verbs, f"{arguments[0]}_")(arguments[1:]) or 0  # only an audit has a status of its own
    except SetwiseError as error:
        print(f"setwise: {error}", file=sys.stderr)
        return STOPPED if isinstance(error, Stopped) else 1 if isinstance(error, RunError) else 2
    except KeyboardInterrupt:
        print("\nsetwise: interrupted; what was done is kept, and --resume continues it.", file=sys.stderr)
        return 130
    except SystemExit as stop:  # the parser has said what is wrong, or shown its help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # `setwise list | head`
        sys.stderr.close()
        return 0

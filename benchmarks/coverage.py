"""Into which models does ``insert`` go? One of every file of timm, every family of torchvision, many of transformers.

For each, "batchformer" (V1) before the classifier and, in a fresh copy, "batchformer-v2" (V2) behind the middle one of
its layers:

  * one training step with 2 and with 3 samples gives both streams, and a gradient to the relation and to all that
    learns in the plain model
  * evaluation is equal to the plain model's, bit for bit
  * the plain stream in training is the plain model, to 1e-6 of the largest number. Where a BatchNorm in training mode
    sees both streams this cannot be, and all are put in evaluation mode for it ("BN" in the table); where rounding in
    float32 is larger, it is taken in float64 ("64")
  * another second sample changes the related row of the first, and not its plain row
  * removed, it is the plain model, and its weights load strictly into one

A few models make ``insert`` ask for the name of a layer or the axis of the channels: they are told (TOLD in
coverage_models.py) and the page says so.

Weights are random, dropout is 0. A model that fails and is not among EXCEPTIONS, or is and does not fail, is an error:
the exit status is 1. Progress goes to stderr, a row a model; all of them take about 20 minutes of one core.
"""

import argparse
import fnmatch
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is built from configurations

import torch
from coverage_check import Case, Result, check
from coverage_models import cases

V1, V2 = "batchformer", "batchformer-v2"
RELATIONS = (V1, V2)
EXCEPTIONS = {
    ("transformers", "AlbertForSequenceClassification"): (
        V2,
        "is not the index of a layer. No list of layers was found",
        "one layer runs again and again, and by its name it is refused for that",
    ),
    ("transformers", "XLNetForSequenceClassification"): (
        V2,
        "with the batch on the first axis",
        "has the batch on the second axis",
    ),
}
"""Library and model -> the relation that does not go in, words of the error, and the reason."""
LIBRARIES = ("timm", "torchvision", "transformers")
COLUMNS = ("library", "file or family", "model", "V1", "V2", "V2 behind", "largest difference", "seconds", "error")


def is_wanted(case: Case, arguments: argparse.Namespace) -> bool:
    names = (case.name, case.family)
    return case.library in arguments.library and any(fnmatch.fnmatch(name, arguments.only) for name in names)


def is_expected(case: Case, relation: str, result: Result) -> bool:
    """Whether the model did what is known of it."""
    known, words, _ = EXCEPTIONS.get((case.library, case.name), ("", "", ""))
    if known != relation:
        return not result.problems
    return bool(result.problems) and all(words in problem for problem in result.problems)


def row_of(case: Case, results: dict[str, Result]) -> str:
    def shown(relation: str) -> str:
        if relation not in results:
            return "-"
        return "no" if results[relation].problems else "yes"

    differences = [
        f"{result.difference:.0e}" + " BN" * result.batchnorm + " 64" * result.float64
        for result in results.values()
        if result.difference == result.difference
    ]
    cells = [case.library, case.family, case.name, *map(shown, RELATIONS)]
    cells += [results[V2].place if V2 in results else ""]
    cells += [", ".join(differences), f"{sum(result.seconds for result in results.values()):.1f}"]
    cells += ["; ".join(problem for result in results.values() for problem in result.problems)]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def counts(tried: list[tuple[Case, dict[str, Result]]]) -> list[str]:
    """How many models of each library take each relation."""
    lines = []
    for library in LIBRARIES:
        for relation in RELATIONS:
            found = [results[relation] for case, results in tried if case.library == library and relation in results]
            if found:
                held = sum(not result.problems for result in found)
                lines.append(f"* {library}, {relation}: {held} of {len(found)}")
    return lines


def remarks(tried: list[tuple[Case, dict[str, Result]]]) -> list[str]:
    """What was refused, and why; what ``insert`` asked for and was told."""
    lines = []
    for case, results in tried:
        if known := EXCEPTIONS.get((case.library, case.name)):
            relation, _, reason = known
            error = "; ".join(dict.fromkeys(results[relation].problems))
            lines.append(f"* exception: {case.name} ({case.library}), {relation}: {reason}. Its error: {error}")
        if case.options and V2 in results:
            told = ", ".join(f"{name}={value!r}" for name, value in case.options.items())
            lines.append(f"* {case.name} ({case.library}), {V2}: told what its error asks for, `{told}`")
    return lines


def about(arguments: argparse.Namespace) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *arguments.library) if name != "torchvision")
    machine = f"{arguments.threads} threads, {platform.system()} {platform.machine()}"
    return f"* python {platform.python_version()}, {versions}, torchvision {version('torchvision')}; {machine}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/coverage.py --library timm --only 'swin*'",
    )
    parser.add_argument("--library", nargs="+", choices=LIBRARIES, default=LIBRARIES, help="default: all three")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="models or families of that name, as in a shell")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default 2)")
    parser.add_argument("--out", type=Path, help="write the table to this new file as well; by default only printed")
    arguments = parser.parse_args(argv)
    if arguments.out is not None and arguments.out.exists():
        parser.error(f"--out {arguments.out} exists and is not overwritten")
    return arguments


def tried(case: Case) -> dict[str, Result]:
    try:
        return check(case)
    except Exception as error:  # the plain model does not run: that is no fault of the relation, and still an error
        text = f"the plain model: {type(error).__name__}: {' '.join(str(error).split())}"
        return {relation: Result(problems=[text]) for relation in case.relations}


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    wanted = [case for case in cases() if is_wanted(case, arguments)]
    if not wanted:
        raise SystemExit(f"--only {arguments.only!r} is no model or family of {', '.join(arguments.library)}.")
    rows, found, unexpected = [], [], []
    for index, case in enumerate(wanted):
        results = tried(case)
        found.append((case, results))
        rows.append(row_of(case, results))
        unexpected += [f"{case.name}, {name}" for name in results if not is_expected(case, name, results[name])]
        print(f"[{index + 1}/{len(wanted)}] {rows[-1]}", file=sys.stderr, flush=True)
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    text = "\n".join([*counts(found), *remarks(found), about(arguments), "", head, *rows])
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    if unexpected:
        print(f"not as written in EXCEPTIONS: {'; '.join(unexpected)}", file=sys.stderr)
    return bool(unexpected)


if __name__ == "__main__":
    sys.exit(main())

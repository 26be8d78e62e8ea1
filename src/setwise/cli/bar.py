"""One live line for everything that a command runs."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Bar"]


class Bar:
    """One live line for all runs together; without a terminal a line every tenth of the way.

    Args:
        of: what is counted, as it stands in those lines.
    """

    def __init__(self, of: str = "all epochs") -> None:
        self.of = of
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description:<24}"), BarColumn(), TaskProgressColumn())
        self.progress = Progress(
            *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.console
        )
        self.task = self.progress.add_task("starting", total=1.0)
        self.tenths = 0

    def __enter__(self) -> "Bar":
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def move(self, name: str, done: float) -> None:
        """Show what moved last, and how far everything is."""
        self.progress.update(self.task, description=name, completed=done)
        if not self.console.is_terminal and int(done * 10) > self.tenths:
            self.tenths = int(done * 10)
            self.console.print(f"{self.tenths * 10} % of {self.of} done")

    def say(self, sentence: str) -> None:
        """Print a sentence above the bar."""
        self.console.print(sentence, markup=False)  # a path may hold brackets

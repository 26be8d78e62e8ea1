"""Results -> tables for the terminal, one picture, one self-contained HTML file, and the numbers as data.

Everything is made from what runs left on disk; nothing here needs the network, the images or a device.
"""

from setwise.report.comparison_page import write_report
from setwise.report.figures import comparison_figure
from setwise.report.literature import reported_of_variant
from setwise.report.run_page import write_run_report
from setwise.report.terminal import comparison_table, run_table
from setwise.report.wording import selection_warning

__all__ = [
    "comparison_figure",
    "comparison_table",
    "reported_of_variant",
    "run_table",
    "selection_warning",
    "write_report",
    "write_run_report",
]

"""What `setwise compare image-folder` does, from Python: plan, run, judge, report, on a folder of one's own images.

The folder holds one folder of images a class, or `train/` and `val/` (and `test/`) of such folders. The settings here
are small so that the example takes seconds; with the recipe as it is (90 epochs, 224 pixels) it takes a GPU.

    python examples/compare_own_folder.py FOLDER [OUT]
"""

import sys
from pathlib import Path

from rich.console import Console

from setwise.compare import compare, make_plan
from setwise.judge import judge
from setwise.recipes import RECIPES
from setwise.report import comparison_table, write_report

SMALL = {
    "backbone.name": "test_resnet",  # timm's smallest; any of its names goes
    "data.image_size": 32,
    "data.batch_size": 16,
    "trainer.epochs": 2,
    "trainer.accelerator": "cpu",
    "optimizer.warmup_epochs": 0,
    "num_seeds": 2,
}


def main(folder: str, out: str = "runs/compare-own-folder") -> None:
    recipe = RECIPES["image-folder"].override({"data.root": folder, **SMALL})
    plan = make_plan(recipe)  # arms and seeds are fixed before the first run
    Path(out).mkdir(parents=True)  # a comparison never overwrites another
    compare(plan, out, workers=1)
    comparison = judge(out)
    Console().print(comparison_table(comparison))
    print(f"{comparison.primary.metric}, related - control: {comparison.primary.interval}")
    print(f"verdict: {comparison.verdict.word}\nreport   {write_report(comparison, Path(out))}")


if __name__ == "__main__":  # runs in parallel processes (workers=2, say) need this line
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])

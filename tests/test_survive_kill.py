"""Real processes that are killed, told to stop, or lose one of their ranks; what they leave ends as if nothing was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from setwise import run
from setwise.checkpoints import read_checkpoint
from setwise.recipes import RECIPES
from setwise.run_folder import RunFolder

EPOCHS, STEPS = 6, 4  # steps of digits-lt in an epoch
FIELDS = {
    "trainer.epochs": EPOCHS,
    "trainer.checkpoint_every": 1,
    "trainer.val_every": 2,
    "trainer.ema": 0.9,
    "trainer.select": "best",
    "trainer.logger": ("csv",),
    "backbone.options": {"width": 4},
}
OPTIONS = [f"--{name}={value}" for name, value in FIELDS.items() if isinstance(value, int | float | str)]
OPTIONS += ["--trainer.logger", "csv", "--backbone.options.width", "4"]
HERE = Path(__file__).parent


def environment(**more):
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return mine | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | more


def fit(recipe, out, **options):
    return run.fit(recipe, out, progress=False, say=lambda text: None, **options)


def same_weights(*folders):
    first, *others = (load_file(RunFolder(folder).weights) for folder in folders)
    return all(torch.equal(value, other[name]) for other in others for name, value in first.items())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    fit(RECIPES["digits-lt"].override(FIELDS), out)
    return out


def test_a_run_killed_at_three_moments_ends_with_the_weights_of_an_unbroken_one(tmp_path, unbroken):
    drawn = random.Random(2)
    kills = [
        ("step", drawn.randrange(STEPS, 2 * STEPS)),
        ("writing", 1),  # the second checkpoint after this start, half of it
        ("step", drawn.randrange(STEPS, 2 * STEPS)),
        ("moving", 1),  # the old checkpoint is away, the new one not yet in its place
        ("evaluating", 0),
        ("", 0),
    ]
    argv = ["train", "digits-lt", *OPTIONS, "--out", str(tmp_path / "run"), "--resume"]
    plan = json.dumps([{"end": end, "at": at, "argv": argv} for end, at in kills])
    command = [sys.executable, str(HERE / "killing.py"), plan]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=250)
    assert json.loads(done.stdout.splitlines()[-1]) == [137] * 5 + [0], done.stderr
    recipe = RECIPES["digits-lt"].override(FIELDS)
    assert recipe.relation.dropout > 0
    assert recipe.data.augment != "none"
    assert same_weights(unbroken, tmp_path / "run")
    trained = (tmp_path / "run" / "logs" / "csv").glob("version_*/metrics.csv")
    assert max(path.parent.name for path in trained) == "version_4"  # the last attempt had nothing to train


def test_a_run_told_to_stop_by_sigterm_says_so_and_continues_exactly(tmp_path):
    epochs = 100
    options = [f"--trainer.epochs={epochs}", "--trainer.checkpoint-every=1000", "--trainer.val-every=1000"]
    options += ["--trainer.logger", "csv", "--backbone.options.width", "4"]
    out = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "setwise", "train", "digits-lt", *options, "--out", str(out.path)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not list(out.logs.glob("csv/version_0/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    epoch = read_checkpoint(out.last)["epoch"]
    assert 0 < epoch < epochs - 1  # only the signal can have written it
    assert f"setwise: Stopped by SIGTERM at the end of epoch {epoch}; continue with --resume." in said
    assert "Traceback" not in said
    recipe = RECIPES["digits-lt"].override(
        {
            "trainer.epochs": epochs,
            "trainer.checkpoint_every": 1000,
            "trainer.val_every": 1000,
            "trainer.logger": ("csv",),
            "backbone.options": {"width": 4},
        }
    )
    fit(recipe, out.path, resume=True)
    fit(recipe, tmp_path / "unbroken")
    assert same_weights(tmp_path / "unbroken", out.path)


TWO_RANKS = """
import os, signal, sys
import torch
from setwise import run
from setwise.cli import main
from setwise.data import TRANSFORMS
from setwise.data.loader import BatchedSplit

def on_train_epoch_start(self, original=run.Classification.on_train_epoch_start):
    original(self)
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], self.current_epoch) == ("1", "0", 3):
        os.kill(os.getpid(), signal.SIGKILL)
    if telling and (os.environ["RANK"], self.current_epoch) == ("1", 2):
        os.kill(os.getpid(), signal.SIGTERM)

def with_nan(self, draw, original=BatchedSplit.__getitem__):
    fetched = original(self, draw)
    training = self.transform is not TRANSFORMS["none"]
    if training and not telling and (draw.epoch, draw.step) == (1, 3):  # step 1 of rank 1
        fetched.batch.image[0] = float("nan")
        open(out + "-images", "w").write(str(draw.indices.tolist()))
    return fetched

telling = False
run.Classification.on_train_epoch_start = on_train_epoch_start
BatchedSplit.__getitem__ = with_nan
out, *argv = sys.argv[1:]
status = main([*argv, "--trainer.on-nan", "skip", "--out", out])
again = main([*argv, "--trainer.on-nan", "stop", "--out", out + "-stopped"])
telling = True
told = main([*argv, "--out", out + "-told"])
kept = torch.load(out + "-told/checkpoints/last.ckpt", weights_only=True)["epoch"]
telling = False
resumed = main([*argv, "--out", out + "-told"])
open(f"{out}-status-{os.environ['RANK']}", "w").write(f"{status} {again} {told} {kept} {resumed}")
sys.exit(status)
"""


def test_two_ranks_decide_alike_and_torchrun_starts_again_after_one_died(tmp_path):
    """One start of torchrun for all: it takes most of the time."""
    (tmp_path / "two_ranks.py").write_text(TWO_RANKS)
    out = RunFolder(tmp_path / "run")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start += ["--max-restarts", "1", "--monitor-interval", "0.5", str(tmp_path / "two_ranks.py"), str(out.path)]
    command = [*start, "train", "digits-lt", *OPTIONS, "--resume"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    assert out.results.read_text().count("\n") == 1
    rows = [(out.logs / "csv" / f"version_{n}" / "metrics.csv").read_text().splitlines() for n in range(2)]
    column = rows[1][0].split(",").index("epoch")
    assert [int(rows[1][line].split(",")[column]) for line in (1, -1)] == [3, EPOCHS - 1]
    # The batch of one rank held a NaN: both left out the step, once, and remember it after the restart.
    notes = json.loads(out.environment.read_text())["notes"]
    assert any("not a finite number: 1; the first: epoch 1, step 1" in note for note in notes)
    assert all(torch.isfinite(value).all() for value in load_file(out.weights).values())
    # The other run ended on both, with the images of the rank that had it. The third was told by SIGTERM on one rank:
    # both ended with the epoch, and went on.
    assert [(tmp_path / f"run-status-{rank}").read_text() for rank in range(2)] == ["0 1 143 2 0"] * 2
    found = json.loads(RunFolder(tmp_path / "run-stopped").nan_batch.read_text())
    assert (found["epoch"], found["step"]) == (1, 1)
    assert found["index"] == json.loads((tmp_path / "run-images").read_text())

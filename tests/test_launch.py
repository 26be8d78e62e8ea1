"""Who started these processes, how many there are, and which of them writes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import few_shot_fakes
import pytest
import torch
from safetensors.torch import load_file

from setwise.cli import main
from setwise.compare import make_plan
from setwise.errors import InvalidInput, RunError
from setwise.launch import is_first, started
from setwise.recipes import RECIPES

WORKER = """
import multiprocessing, os, signal, time
from setwise.launch import end_with_parent

def work(queue):
    end_with_parent()
    queue.put(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    end_with_parent()  # of no effect here
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    context.Process(target=work, args=(queue,)).start()
    print(queue.get(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""

SLURM = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train", "SLURM_LOCALID": "1"}
TORCHRUN = {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [
        ((None, None), {}, (1, 1)),
        ((2, None), {}, (2, 1)),
        ((None, None), TORCHRUN, (3, 2)),
        ((3, 2), TORCHRUN, (3, 2)),
        ((None, None), SLURM, (4, 2)),
        ((2, None), SLURM | {"SLURM_JOB_NAME": "interactive"}, (2, 1)),
        ((2, None), {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, (2, 1)),  # Lightning's own children
    ],
)
def test_the_launcher_knows_how_many_processes_there_are(asked, environment, expected):
    assert started(*asked, environment) == expected


@pytest.mark.parametrize(
    ("asked", "environment", "message"),
    [
        ((2, None), TORCHRUN, r"`trainer.devices` is 2, but the launcher started 3"),
        ((None, 1), SLURM, r"`trainer.num_nodes` is 1, but the launcher started 2"),
        ((None, None), SLURM | {"SLURM_NTASKS": "7"}, r"7 tasks on 2 nodes"),
        ((None, None), TORCHRUN | {"WORLD_SIZE": "7"}, r"7 processes, 3 here"),
    ],
)
def test_a_launcher_that_contradicts_the_recipe_is_a_sentence(asked, environment, message):
    with pytest.raises(InvalidInput, match=message):
        started(*asked, environment)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        (TORCHRUN | {"RANK": "0"}, True),
        (TORCHRUN | {"RANK": "3"}, False),  # the first of the second machine
        (SLURM | {"SLURM_PROCID": "0"}, True),
        (SLURM | {"SLURM_PROCID": "4"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),  # Lightning's own, on the second machine
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
    ],
)
def test_one_process_writes(environment, expected):
    assert is_first(environment) is expected


def test_a_comparison_of_runs_on_several_devices_is_refused():
    with pytest.raises(RunError, match="one by one"):
        make_plan(RECIPES["digits-lt"].override({"trainer.devices": 2}))


SMALL = ["digits-lt", "--trainer.epochs", "2", "--trainer.accelerator", "cpu", "--relation.gather", "True"]


def environment(**more):
    mine = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return mine | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | more


def setwise(*arguments):
    return [sys.executable, "-m", "setwise", "train", *SMALL, *map(str, arguments)]


def by_lightning(out):
    return [subprocess.Popen(setwise("--trainer.devices", 2, "--out", out), env=environment())]


def by_torchrun(out):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "setwise"]
    return [subprocess.Popen([*command, "train", *SMALL, "--out", str(out)], env=environment())]


def by_slurm(out):
    """srun starts every process itself and numbers them."""
    job = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
    }
    job |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "localhost", "MASTER_ADDR": "localhost"}
    job |= {"MASTER_PORT": "29617"}
    ranks = ({"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2))
    return [subprocess.Popen(setwise("--out", out), env=environment(**job, **rank)) for rank in ranks]


def test_two_processes_run_two_stages_in_a_folder_of_the_first_ones_choice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits-lt", "--trainer.epochs", "1"]) == 0  # complete, and no business of the second process
    stages = ["--before.recipe", "digits-lt", "--before.options.trainer.epochs", "1", "--backbone.frozen"]
    command = setwise("--trainer.devices", 2, *stages, "--trainer.epochs", 1)
    assert subprocess.run(command, env=environment(), timeout=200, check=False).returncode == 0
    lines = [(tmp_path / "runs" / "digits-lt-2" / part / "results.jsonl").read_text() for part in ("", "before")]
    assert all(line.count("\n") == 1 for line in lines)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"digits-lt", "digits-lt-2"}


def test_two_processes_train_episodes_on_a_trunk_that_has_weights_behind_its_map(tmp_path):
    data = few_shot_fakes.write("omniglot", tmp_path / "data")
    options = RECIPES["omniglot-ctx"].smoke | {f"data.{name}": value for name, value in data.items()}
    options |= {"trainer.logger": "csv", "trainer.devices": 2, "backbone.name": "test_convnext", "data.image_size": 32}
    del options["backbone.options"]
    command = [sys.executable, "-m", "setwise", "train", "omniglot-ctx", "--out", str(tmp_path / "run")]
    command += [f"--{name}={value}" for name, value in options.items()]
    assert subprocess.run(command, env=environment(), timeout=200, check=False).returncode == 0
    assert (tmp_path / "run" / "results.jsonl").read_text().count("\n") == 1


def test_lightning_torchrun_and_slurm_train_the_same_network(tmp_path):
    weights = {}
    for start in (by_lightning, by_torchrun, by_slurm):
        out = tmp_path / start.__name__
        assert [process.wait(timeout=200) for process in start(out)] in ([0], [0, 0])
        assert (out / "results.jsonl").read_text().count("\n") == 1
        weights[start.__name__] = load_file(out / "weights.safetensors")
    first, *others = weights.values()
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_a_worker_ends_with_the_process_that_spawned_it_even_if_that_was_killed(tmp_path):
    (tmp_path / "parent.py").write_text(WORKER)
    done = subprocess.run([sys.executable, str(tmp_path / "parent.py")], capture_output=True, text=True)
    worker = int(done.stdout)
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists() or "(zombie)" in Path(f"/proc/{worker}/status").read_text():
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError("the worker outlived its parent")

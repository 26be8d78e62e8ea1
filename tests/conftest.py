"""What all tests share: shape checks on, one thread a worker, and one random state to begin with.

The hook must be installed before anything imports the packages it instruments, so it is not in a fixture.
"""

import typecheck

typecheck.install()

import random  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
hypothesis.settings.register_profile("setwise", deadline=None)  # the first call of a kernel may take a second
hypothesis.settings.load_profile("setwise")


def _seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector):
    """Parameters that are drawn while a file is imported are the same in every run."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What a test draws does not depend on the tests before it."""
    _seed()


@pytest.fixture
def unchecked():
    """Shape checks off, as for every user."""
    with typecheck.shapes_unchecked():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on digits, by the command line."""
    from setwise.cli import main

    tiny = ["--trainer.epochs", "1", "--trainer.logger", "csv", "--backbone.options.width", "4"]
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "digits-lt", "--out", str(out), *tiny]) == 0
    return out


@pytest.fixture(scope="module")
def trained_on_images(tmp_path_factory):
    """A finished run on image files in ``run``, and the files in ``data``."""
    import fakes

    from setwise.cli import main

    root = tmp_path_factory.mktemp("images")
    fakes.write("image-folder", root / "data")
    small = ["--backbone.name", "test_resnet", "--data.image-size", "32", "--data.batch-size", "8"]
    arguments = ["train", "image-folder", "--data.root", str(root / "data"), "--out", str(root / "run"), *small]
    assert main([*arguments, "--trainer.max-steps", "2", "--trainer.logger", "csv"]) == 0
    return root

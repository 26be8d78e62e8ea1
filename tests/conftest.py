"""What all tests share: shape checks on, and one thread a worker.

The hook must be installed before anything imports the packages it instruments, so it is not in a fixture.
"""

import typecheck

typecheck.install()

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
hypothesis.settings.register_profile("setwise", deadline=None)  # the first call of a kernel may take a second
hypothesis.settings.load_profile("setwise")


@pytest.fixture
def unchecked():
    """Shape checks off, as for every user."""
    with typecheck.shapes_unchecked():
        yield

"""One thread and one seed for every test: results do not depend on the machine's cores or on the order of the tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of what tests start, and of NumPy's BLAS; before any of them loads

import pytest
import torch

torch.set_num_threads(1)

EXPENSIVE = {"finished", "full"}  # fixtures of a module that take seconds


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `-n ... --dist loadgroup`, the tests on an expensive fixture share a worker, which builds it once."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        if EXPENSIVE.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))

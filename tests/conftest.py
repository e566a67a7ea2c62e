"""What every test shares: one torch thread, no display, no folders elsewhere, and hypothesis that draws the same
examples each time."""

import os

os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile("metarl", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("metarl")


@pytest.fixture(scope="session", autouse=True)
def _no_folders_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stock algorithms that have no logger make a folder for every learn(), among the machine's temporary files, and
    what experts show is kept in the user's cache.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))
        patch.setenv("METARL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield

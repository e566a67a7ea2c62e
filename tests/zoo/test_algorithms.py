"""Starting a run from the file of another algorithm."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.errors import ConfigError
from metarl.meta.algorithms.cavia import CAVIA
from metarl.meta.algorithms.maml import MAML
from metarl.meta.algorithms.meta_sgd import MetaSGD
from metarl.meta.algorithms.reptile import Reptile
from metarl.params import RATES, group
from metarl.zoo.algorithms import copy_parameters
from tests.meta.small import equal, run_iterations, small


def test_a_context_that_the_target_has_not_is_folded_so_that_it_acts_the_same() -> None:
    source, target = small(CAVIA, n_context=3, outer="adam"), small(MAML, seed=1)
    run_iterations(source, 2)
    names = list(target.params)
    copy_parameters(source, target, "cavia.safetensors")
    assert list(target.params) == names
    obs = np.linspace(-1.0, 1.0, 8, dtype=np.float32).reshape(4, 2)
    own, given = (model.predict(obs, deterministic=True)[0] for model in (target, source))
    np.testing.assert_allclose(own, given, atol=1e-6)


def test_rates_that_the_source_has_not_begin_at_the_inner_rate() -> None:
    source, target = small(Reptile), small(MetaSGD, seed=1, inner_lr=0.2)
    copy_parameters(source, target, "reptile.safetensors")
    assert equal(target.policy_params, source.policy_params)
    assert all(bool((rate == 0.2).all()) for rate in group(target.params, RATES).values())
    learnt = small(MetaSGD, inner_lr=0.3)
    copy_parameters(learnt, target, "meta_sgd.safetensors")
    assert torch.equal(target.params["rates/log_std"], learnt.params["rates/log_std"])


def test_a_context_that_the_source_has_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"maml.safetensors does not fit: policy/\S+context is missing there and"):
        copy_parameters(small(MAML), small(CAVIA), "maml.safetensors")

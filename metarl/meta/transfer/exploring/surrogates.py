r"""What is differentiated where a support is episodes: surrogates of the return whose gradient is a policy gradient.

At the parameters that collected, all have the same gradient, the policy gradient. Training differentiates that once
more, and there they differ. With ``g_t = ∇ log π(a_t|s_t)`` and the sum ``G_t`` of those before it in the episode,
their second derivatives are, for each step, its advantage times

- ``"log_likelihood"``, ``log π``: ``∇² log π``. That the policy says which episodes are seen is left out.
- ``"likelihood_ratio"``, ``π/π_old`` (LVC; Rothfuss et al., 2018): ``∇² log π + g gᵀ``; what earlier actions did to
  the state is left out, so that it is biased, with little variance.
- ``"dice"``, ``Π_{s≤t} π/π_old − Π_{s<t} π/π_old`` (Foerster et al., 2018; in the form for advantages of Farquhar et
  al., 2019): ``∇² log π + g gᵀ + g Gᵀ + G gᵀ``, which is unbiased. With returns to go for advantages the sum over
  steps is that of ``r_t Π_{s≤t} π/π_old``, up to a constant.
"""

from __future__ import annotations

import torch

SURROGATES = ("log_likelihood", "likelihood_ratio", "dice")


def surrogate_scores(
    kind: str, log_prob: torch.Tensor, old: torch.Tensor, first: torch.Tensor | None = None
) -> torch.Tensor:
    """Return what each step's advantage is multiplied by, ``[task, n]``.

    :param kind: of :data:`SURROGATES`.
    :param log_prob: of the actions, ``[task, n]``, a function of the parameters.
    :param old: the same at those that collected, a constant.
    :param first: ``[task, n]``, the index of the first step of each step's episode; for ``"dice"``.
    """
    if kind == "log_likelihood":
        return log_prob
    if kind == "likelihood_ratio":
        return torch.exp(log_prob - old)
    assert first is not None
    sums = torch.nn.functional.pad((log_prob - old).cumsum(-1), (1, 0))
    start = sums.gather(-1, first)
    return torch.exp(sums[..., 1:] - start) - torch.exp(sums[..., :-1] - start)

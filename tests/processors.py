"""What the numbers of this processor's BLAS depend on."""

from __future__ import annotations

import pytest
import torch


def rows_are_alone() -> bool:
    """Return whether the numbers of a row of a stack of products are the same whatever other rows there are.

    They are with MKL on the processors of AMD, and are not on some of Intel's, where it has other kernels.
    """
    generator = torch.Generator().manual_seed(0)
    for inner, width in ((5, 16), (16, 16), (5, 64), (64, 64), (64, 4), (100, 100), (125, 20), (20, 20), (100, 4)):
        x = torch.randn(3, 200, inner, generator=generator)
        right, added = torch.randn(3, width, inner, generator=generator).mT, torch.zeros(3, 1, width)
        whole = torch.baddbmm(added, x, right)
        for n in (4, 5, 9, 16, 25, 50):
            for start in (0, 3):
                part = x[:, start : start + n].contiguous()
                if not torch.equal(torch.baddbmm(added, part, right), whole[:, start : start + n]):
                    return False
    return True


needs_rows_alone = pytest.mark.skipif(
    not rows_are_alone(), reason="this processor's BLAS rounds a row of a product by what other rows there are"
)

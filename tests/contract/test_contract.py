"""Every wrapper around every learner, on every kind of family, with one, two and three inner steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.suite import Case, cases, check, is_quick

CASES = [pytest.param(case, id=str(case), marks=[] if is_quick(case) else pytest.mark.slow) for case in cases()]


@pytest.mark.parametrize("case", CASES)
def test_the_contract_is_kept_or_refused_with_a_sentence(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)

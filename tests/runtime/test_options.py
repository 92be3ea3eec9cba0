"""What a user gives beside a recording: names in place of numbers."""

from __future__ import annotations

import pytest

from dvpd.runtime.errors import InputError
from dvpd.runtime.options import QUALITY_STEPS, chosen_steps


def test_a_name_stands_for_a_number_of_steps():
    assert [chosen_steps(None, name) for name in ("fast", "balanced", "best")] == [0, 1, 3]
    assert chosen_steps(2, None) == 2
    assert chosen_steps(0, None) == 0
    assert chosen_steps(None, None) is None


def test_both_or_an_unknown_name_are_refused_in_words():
    with pytest.raises(InputError, match="steps is 3 and quality is 'best'; give one of the two"):
        chosen_steps(3, "best")  # even where they agree
    for name in ("good", "", "BEST"):
        with pytest.raises(InputError, match="expected one of fast, balanced, best"):
            chosen_steps(None, name)
    assert max(QUALITY_STEPS.values()) == 3

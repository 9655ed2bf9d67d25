"""The table of slices, as text for the terminal and on the report page: its note about marked rates."""

from __future__ import annotations

import pytest

from tiny_audio.analysis.comparison import Slice
from tiny_audio.analysis.report._systems import slices_table as slices_on_a_page
from tiny_audio.analysis.tables import slices_table


@pytest.mark.parametrize(("interval", "is_marked"), [((-0.2, 0.1), False), ((-0.2, -0.1), True), (None, False)])
def test_the_note_about_marks_is_shown_only_if_a_rate_is_marked(
    interval: tuple[float, float] | None, is_marked: bool
) -> None:
    names = ["base*", "other"]
    part = Slice("room", "a*", 60, 100, dict.fromkeys(names, 0.25), dict.fromkeys(names), {"other": interval})
    text = slices_table([part], names)
    assert "a*" in text
    assert ("25.00%*" in text, "\n* The 95 % interval of the difference" in text) == (is_marked, is_marked)
    page = "".join(map(str, slices_on_a_page([part], names)))
    assert ("25.00\N{NO-BREAK SPACE}%*" in page, "* In this slice" in page) == (is_marked, is_marked)

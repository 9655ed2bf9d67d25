"""``tiny-audio compare``: compare finished runs on the same clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiny_audio.analysis.compare import compare_folders
from tiny_audio.analysis.report import render_comparison
from tiny_audio.analysis.report.audio import audio_reader
from tiny_audio.analysis.tables import comparison_table
from tiny_audio.commands._output import check_page, print_json


def compare(
    runs: Sequence[Path],
    set_name: str | None,
    *,
    common: bool,
    normalizer: str | None,
    group_by: str | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Print the comparison, and write it to the page ``html`` if one is given."""
    check_page(html)
    comparison = compare_folders(runs, set_name=set_name, common=common, normalizer_name=normalizer, group_by=group_by)
    if html is not None:
        html.write_text(render_comparison(comparison, audio_reader(comparison.files)), encoding="utf-8")
    if as_json:
        print_json(comparison.to_json())
    else:
        print(comparison_table(comparison))

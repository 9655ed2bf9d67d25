"""``tiny-audio rescore``: score saved hypotheses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tiny_audio.analysis.report.audio import audio_reader
from tiny_audio.analysis.rescore import rescore as rescore_files
from tiny_audio.analysis.tables import rescore_table
from tiny_audio.commands._output import check_page, print_json


def rescore(
    hypotheses: Sequence[Path],
    *,
    normalizer: str,
    cost: str | None,
    group_by: str | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Print the scores, and write them to the page ``html`` if one is given."""
    check_page(html)
    found = rescore_files(hypotheses, normalizer_name=normalizer, cost=cost, group_by=group_by)
    if html is not None:
        from tiny_audio.analysis.report import render_targets

        html.write_text(render_targets(found, audio_reader(hypotheses)), encoding="utf-8")
    if as_json:
        print_json(found.summary)
    else:
        print(rescore_table(found))

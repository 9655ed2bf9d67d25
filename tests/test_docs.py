"""The documentation: links, anchors, the length of the README, and published results."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.support.paths import RECIPES, ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes from a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"[^\w\- ]", "", LINK.sub("", heading.replace("`", "")).lower()).strip()
        found.add(text.replace(" ", "-"))
    return found


def links(page: Path) -> list[str]:
    """Return the targets of a page's links, except links in code and links to other sites."""
    targets = LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def test_pages_and_links_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= {page.name for page in PAGES}
    assert len(links(ROOT / "docs" / "index.md")) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_exist(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} does not exist"
        assert linked.is_relative_to(ROOT), f"{target} leaves the repository"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{target}: no such heading; there are {sorted(anchors(linked))}"


def test_every_page_is_linked_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in links(index)}
    assert {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - {index} <= linked


def test_the_readme_is_short() -> None:
    """The README has at most 1,000 words, including code and tables."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def test_all_pages_have_the_same_result_of_the_quickstart() -> None:
    header = " ".join((RECIPES / "quickstart.yaml").read_text().partition("encoder:")[0].replace("#", "").split())
    published = re.search(r"WER (\S+ % \[[^]]+\])", header)
    assert published is not None
    for page in ("README.md", "docs/results.md"):
        assert published[1] in (ROOT / page).read_text(encoding="utf-8"), f"{page} has other numbers than the recipe"


def test_the_citation_and_the_workflow_are_valid_yaml() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["authors"] == [{"name": "The Tiny Audio authors"}]
    assert (ROOT / "tiny_audio" / "__init__.py").read_text().count(f'"{citation["version"]}"') == 1
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["check"]["steps"][-1] == {"run": ".ci/run"}
    assert (ROOT / ".ci" / "run").is_file()

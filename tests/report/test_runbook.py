"""Runbooks inside the report: read by a Markdown parser once, kept, and nothing in them is taken for HTML or Jinja."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autopsy.diagnose import runbooks
from autopsy.report import runbook
from autopsy.resources import resource

WRITTEN = sorted(resource("runbooks").glob("*.md"))


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: file.stem)
def test_every_runbook_has_its_page(file: Path) -> None:
    page = str(runbook.runbook(file.stem))
    assert page.startswith("<h3>")
    assert page.count("<h4>") == runbooks.without_commands(file.read_text("utf-8")).count("\n## ")
    assert "<script" not in page


def test_a_signature_without_a_runbook_has_none() -> None:
    assert runbook.runbook("no-such-signature") is None


def test_what_looks_like_html_or_a_template_is_shown_as_it_is() -> None:
    page = runbook.Pages(runbook.load_pages().environment).preprocess(
        json.dumps({"a-b": "# x\n\n<b> {{ y }} {% z %}\n"}), ""
    )
    template = runbook.load_pages().environment.from_string(json.dumps({"a-b": "# x\n\n<b> {{ y }} {% z %}\n"}))
    assert page.startswith("{% block a_b %}")
    assert template.render() == "<h3>x</h3>\n<p>&lt;b&gt; {{ y }} {% z %}</p>\n"


def test_once_kept_the_parser_is_not_even_loaded(tmp_path: Path) -> None:
    code = (
        "import shutil, sys; from pathlib import Path; from autopsy import resources\n"
        f"resources.PACKAGE = Path({str(tmp_path)!r})\n"
        "from autopsy.report import runbook\n"
        "print(len(runbook.runbook('healthy')), 'markdown_it' in sys.modules)"
    )
    folder = tmp_path / "runbooks"
    folder.mkdir()
    for file in WRITTEN:
        (folder / file.name).write_bytes(file.read_bytes())
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": str(resource("runbooks").parent)},
            capture_output=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert [loaded for _, loaded in said] == [b"True", b"False"]
    assert said[0][0] == said[1][0]

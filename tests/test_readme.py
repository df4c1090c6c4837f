import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from ct2mri.cli import COMMANDS, parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def commands_of(page):
    """The `ct2mri …` lines of a page's shell blocks and the `ct2mri …` spans with arguments in its tables."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    tables = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    lines += [span for line in tables for span in re.findall(r"`(ct2mri [^`]+)`", line)]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("ct2mri ")]


def split_name(words):
    """A command's name and its arguments."""
    length = 2 if words[1] == "train" else 1
    return " ".join(words[1 : 1 + length]), words[1 + length :]


COMMAND_LINES = [(page.name, words) for page in PAGES for words in commands_of(page)]


@pytest.mark.parametrize(
    ("page", "words"), COMMAND_LINES, ids=[f"{page}: {' '.join(words)}" for page, words in COMMAND_LINES]
)
def test_every_command_in_the_documentation_is_understood(page, words):
    name, arguments = split_name(words)
    assert parse(name, arguments) is not None


def test_every_command_is_shown_in_the_readme():
    shown = {split_name(words)[0] for words in commands_of(ROOT / "README.md")}
    assert shown == set(COMMANDS)


def test_training_on_own_data_takes_at_most_six_commands():
    section = (
        (ROOT / "README.md").read_text(encoding="utf-8").split("## Train on your data")[1].split("\n## ")[0]
    )
    found = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    to_a_model = next(block.splitlines() for block in found if "ct2mri train" in block)
    assert len(to_a_model) <= 6
    assert [split_name(shlex.split(line))[0] for line in to_a_model][-1] == "export"


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_python_examples_use_what_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    title = "Scalable Diffusion Models for Inter-modality Volumetric Medical Image Translation"
    assert paper["title"] == title and paper["year"] == 2025 and paper["journal"] == "The Visual Computer"
    assert [author["family-names"] for author in paper["authors"]] == ["Ni", "Ma", "Chen"]
    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").replace(">", " ").split())
    assert title in words


def test_the_documented_plan_fields_are_the_plans():
    from dataclasses import fields

    from ct2mri.data.plan import Plan

    section = (
        (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("## `plan.json`")[1].split("\n## ")[0]
    )
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {
        field.name for field in fields(Plan)
    }

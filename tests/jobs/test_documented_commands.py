"""Every command that a README prints is one: its job is there, and takes its flags and values."""

import importlib
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [
    path
    for pattern in ("*.md", "*/README.md", "pipeline/*/README.md", "tests/*/README.md")
    for path in REPOSITORY.glob(pattern)
]
# Of every job; of train, whose recipes are no field; what a page says is refused; and of another's command.
OF_TOOLS = (
    "--recipe",
    "--frames",
    "--local-dir",
    "--help",
    "--help-all",
    "--version",
    "--config",
    "--print_completion",
)
COMMAND = re.compile(r"python jobs/(\w+)\.py([^`#\n|>&]*)")


def commands():
    for page in PAGES:
        for job, words in COMMAND.findall(page.read_text().replace("\\\n", " ")):
            if not re.search(r"\.\.\.|\[", words) and words.strip():
                yield pytest.param(job, words, id=f"{page.relative_to(REPOSITORY)}: {job}{words}"[:80])


@pytest.mark.parametrize(("job", "words"), list(commands()))
def test_a_printed_command_is_one(job, words, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "jobs")
    monkeypatch.setattr(sys, "argv", [f"{job}.py", *shlex.split(words)])
    command_line = importlib.import_module("command_line")
    module = importlib.reload(importlib.import_module(job)) if job == "benchmark" else importlib.import_module(job)
    options = {name: value for name, value in module.run.keywords.items() if name != "resume"}
    config = command_line.parse(module.run.args[0], shlex.split(words), **options)
    assert isinstance(config, module.run.args[0])


def test_every_flag_that_a_page_names_is_one_of_a_job_or_of_a_tool(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "jobs")
    known = {*OF_TOOLS, importlib.import_module("command_line").SHARED}
    for path in (REPOSITORY / "jobs").glob("*.py"):
        if (run := getattr(importlib.import_module(path.stem), "run", None)) is not None:
            known |= {f"--{field.name.replace('_', '-').rstrip('-')}" for field in fields(run.args[0])}
    for page in [REPOSITORY / "README.md", REPOSITORY / "jobs" / "README.md", *REPOSITORY.glob("pipeline/*/README.md")]:
        named = set(re.findall(r"`[^`]*?(--[a-z][\w-]+)", page.read_text()))
        assert named - known == set(), page

"""Names in tables for people act on no terminal, are no markup, and stay in their cells."""

import io

from rich.console import Console

from pipeline.evaluate.tables import ResultTable, markdown_code, markdown_lines, print_tables

NAME = "a|b `c` [red]x[/red] <b>\x1b[2J\n# y"


def test_a_name_stays_in_its_cell_of_markdown():
    lines = markdown_lines(ResultTable(NAME, ["network", "command"], [[NAME, NAME]]))
    assert len(lines) == 6
    assert lines[5] == r"| a\|b \`c\` \[red\]x\[/red\] \<b> \[2J # y | `a\|b 'c' [red]x[/red] <b> [2J # y` |"
    assert markdown_code(NAME).count("`") == 2


def test_a_name_is_no_markup_and_no_escape_sequence_in_a_terminal():
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    print_tables([ResultTable(NAME, ["network", NAME], [[NAME, "token=hunter2"]])], console)
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert shown.count("[red]x[/red]") == 3
    assert "\x1b" not in shown
    assert "hunter2" not in shown

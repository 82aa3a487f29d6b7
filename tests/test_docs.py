"""The pages are what the program is: commands, options, outputs and links."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gbprewrite.cli import main
from gbprewrite.cli.help import topics

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "gbprewrite" / "docs").glob("*.md"))
GUIDES = [ROOT / "README.md", *DOCS]
PAGES = [*GUIDES, ROOT / "gbprewrite/README.md", ROOT / "models/README.md", ROOT / "tests/bench/README.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!`)\[[^\]\n]*\]\(([^)\s]+)\)")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text())
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_resolve(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def options() -> Iterator[tuple[str, str]]:
    for name, command in main.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield name, max(parameter.opts, key=len)


def test_every_command_and_option_stands_in_a_page() -> None:
    text = "\n".join(page.read_text() for page in GUIDES)
    missing = [
        f"gbprewrite {name}" for name in main.commands if f"`{name}`" not in text and f"gbprewrite {name}" not in text
    ]
    missing += [f"{name} {option}" for name, option in options() if not re.search(rf"{option}(?![\w-])", text)]
    assert not missing


def examples() -> Iterator[tuple[str, str, str]]:
    """Of the digits, which run anywhere: page, the block of commands or Python, and the output below it."""
    for page in GUIDES:
        for (kind, code), (below, output) in itertools.pairwise(FENCE.findall(page.read_text())):
            if below == "text" and kind in ("console", "python") and "digits" in code:
                yield named(page), code, output


def printed(code: str, capture: pytest.CaptureFixture[str]) -> str:
    """What the block prints: Python in this process, commands by click's runner."""
    if not code.startswith("$ "):
        exec(compile(code, "<page>", "exec"), {})
        return capture.readouterr().out
    shown = ""
    for line in code.replace("\\\n", "").splitlines():
        arguments = shlex.split(line.removeprefix("$ ").split("&& ")[-1])
        if arguments[0] == "python":
            exec(arguments[2], {})
        else:
            result = CliRunner().invoke(main, arguments[1:], catch_exceptions=False)
            assert result.exit_code == 0, result.output
            shown = result.stdout
    return shown


def test_outputs_are_what_the_commands_print(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    seen = list(examples())
    assert {page for page, _, _ in seen} >= {"README.md", "gbprewrite/docs/inspect.md", "gbprewrite/docs/runtime.md"}
    for page, code, output in seen:
        assert _plain(printed(code, capsys)) == _plain(output), f"{page}: {code}"


def _plain(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


class TestHelp:
    def test_lists_every_page(self) -> None:
        assert topics() == [page.stem for page in DOCS]
        listed = CliRunner().invoke(main, ["help"]).stdout.splitlines()
        assert [line.split()[0] for line in listed] == topics()

    @pytest.mark.parametrize("topic", topics())
    def test_prints_a_page_as_it_is_in_a_pipe(self, topic: str) -> None:
        text = (ROOT / "gbprewrite/docs" / f"{topic}.md").read_text()
        assert CliRunner().invoke(main, ["help", topic]).stdout == text

    def test_unknown_topic(self) -> None:
        result = CliRunner().invoke(main, ["help", "nothing"])
        assert result.exit_code == 2
        assert "there is no page 'nothing'" in result.stderr


def test_readme_ends() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
    assert "../shared" not in "".join(page.read_text() for page in PAGES)

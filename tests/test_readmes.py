"""The two READMEs say the same: the same sections, commands, documents and files, in order."""

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
# Those of one README alone: the links to each other.
EACH_OTHER = {"README.md", "README.zh-CN.md"}


def blocks(readme: str) -> Iterator[tuple[str, str]]:
    """The language and content of each fenced block."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)


def commands(readme: str) -> list[str]:
    """Every line of code, the drawing included, without comments."""
    return [
        re.sub(r" +# .*", "", line)
        for language, content in blocks(readme)
        if language != "text"
        for line in content.splitlines()
    ]


def files(readme: str) -> list[str]:
    """The first word of each line of the tree of files."""
    return [
        line.split()[0]
        for language, content in blocks(readme)
        if language == "text"
        for line in content.splitlines()
    ]


def prose(readme: str) -> str:
    """What is outside of the fenced blocks."""
    return re.sub(r"^```.*?^```$", "", readme, flags=re.MULTILINE | re.DOTALL)


def outline(readme: str) -> list[tuple[str, int]]:
    """The level of each heading, and how many points of a list follow it."""
    sections = re.split(r"^(#+) .*$", prose(readme), flags=re.MULTILINE)[1:]
    bodies = zip(sections[::2], sections[1::2], strict=True)
    return [(level, len(re.findall(r"^- ", body, re.MULTILINE))) for level, body in bodies]


def test_each_begins_with_a_link_to_the_other() -> None:
    assert "](README.zh-CN.md)" in ENGLISH.splitlines()[2]
    assert "](README.md)" in CHINESE.splitlines()[2]


def test_both_have_the_same_sections_with_as_many_points() -> None:
    assert outline(CHINESE) == outline(ENGLISH)


def test_both_give_the_same_commands() -> None:
    for chinese, english in zip_longest(commands(CHINESE), commands(ENGLISH)):
        assert chinese == english


def test_both_name_the_same_documents() -> None:
    chinese, english = (re.findall(r"\]\((.*?)\)", prose(text)) for text in (CHINESE, ENGLISH))
    assert [link for link in chinese if link not in EACH_OTHER] == [
        link for link in english if link not in EACH_OTHER
    ]


def test_both_show_the_same_tree_of_files() -> None:
    assert files(CHINESE) == files(ENGLISH)


def test_both_name_the_same_fields_routes_and_flags() -> None:
    chinese, english = (set(re.findall(r"`([^`]+)`", prose(text))) for text in (CHINESE, ENGLISH))
    assert chinese == english


def test_the_chinese_one_is_in_chinese_throughout() -> None:
    """A paragraph that was added in English, to be translated later, is noticed."""
    for paragraph in re.split(r"\n(?:\n|(?=- ))", prose(CHINESE)):
        is_title = paragraph.startswith("#") or "](LICENSE)" in paragraph
        assert is_title or not paragraph.strip() or re.search(r"[\u4e00-\u9fff]", paragraph)

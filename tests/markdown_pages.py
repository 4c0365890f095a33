"""Reading Markdown pages: their blocks, running text, tables and anchors."""

import re


def blocks(path):
    """Language, first line number and text of every fenced and indented block of a page."""
    found, language, lines, before = [], None, [], ""
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
        if language not in (None, "indented"):
            if line == "```":
                found.append((language, number - len(lines), "\n".join(lines)))
                language, lines = None, []
            else:
                lines.append(line)
            continue
        if language is None and line.startswith("    ") and not before:
            language = "indented"
        if language == "indented":
            if line.startswith("    "):
                lines.append(line[4:])
            else:
                found.append(("indented", number - len(lines), "\n".join(lines)))
                language, lines = None, []
        if line.startswith("```"):
            language = line[3:] or "plain"
        before = line
    return found


def prose(path):
    """A page without its blocks."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^    \S.*$", "", text, flags=re.MULTILINE)


def spans(path):
    """Every inline code of a page."""
    return re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", prose(path))


def section(path, heading):
    """The text below a heading, up to the next one."""
    text = path.read_text(encoding="utf-8")
    return re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text):
    """The rows of the tables in a text, without heads and rules."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = {i for i, line in enumerate(lines) if set(line) <= set("|-: ")}
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for i, line in enumerate(lines)
        if not {i, i + 1} & rules
    ]


def anchors(path):
    """What links into a page can name: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

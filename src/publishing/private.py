"""What tells of a machine and of who uses it, taken out of everything that is published.

Folders are cut down to the last name of a path, and names of the user and of the machine are replaced. What is left is
read again in every notation that it may stand in; a file that still tells is refused.
"""

from __future__ import annotations

import base64
import getpass
import html
import json
import os
import re
import socket
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import yaml

from ..errors import PartitaError
from ..storage.files import kind
from ..storage.untrusted import header_entries

SEPARATOR = (
    r"(?:/|\\{1,4}(?:u00|x|u\{0*|U000000)(?:2[Ff]|5[Cc])\}?|\\{1,4}/?|%(?:25)*(?:2[Ff]|5[Cc])"
    r"|&(?:amp;)*(?:#(?:0*47|0*92|[xX]0*2[Ff]|[xX]0*5[Cc])|sol|bsol);)"
)
NAME = r"""(?:[^\s"'<>|*?:;,()\[\]{}&%\\/`]|%(?!(?:25)*(?:2[Ff]|5[Cc]))[0-9A-Fa-f]{2})+"""
ROOTS = "home|Users|root|tmp|var|mnt|media|Volumes|private|scratch|workspace|work|opt|srv|data|nfs|export|Documents"
REST = f"(?:{SEPARATOR}{NAME})"
PATHS = [
    re.compile(pattern)
    for pattern in (
        rf"file:{SEPARATOR}{{0,3}}(?:[A-Za-z](?::|%3[Aa]))?(?:{NAME})?{REST}*",
        rf"(?<![A-Za-z])[A-Za-z](?::|%3[Aa]|&#58;)(?!//){REST}+",
        rf"(?<![\w~])~(?:[A-Za-z_][\w.-]*)?{REST}+",
        rf"(?<![\w/.])(?:\.\.{SEPARATOR})+{NAME}{REST}*",
        rf"(?<![\w.~-]){SEPARATOR}(?:{ROOTS}){REST}+",
        rf"(?<![\w/.<+&;-])/[\w.~-]+(?:/{NAME})+",
        rf"(?<![\\\w])\\{{2,4}}[\w.$-]+(?:\\{{1,4}}{NAME})+",
    )
]
"""Paths wherever they stand: as addresses, of Windows, of a home, upwards, below known roots, of two names or more, of
a server."""

WHOLE = re.compile(r"(?:file:|~[\w.-]*(?:[\\/]|$)|[\\/]|\.\.?[\\/]|[A-Za-z]:[\\/]).*", re.DOTALL)
"""A text that is a path and nothing else."""

STRUCTURE = ("tokenizers", "conditioners", "stages", "trainer", "name", "preset")
"""Keys whose values hold names that mean something in a recipe, and stay even where a user is called so."""

PLACES = ("path", "manifest", "weights", "name_or_path")
"""Keys whose values are paths, or names that are none."""

ORDINARY = re.compile(
    "admin|administrator|app|build|builder|codespace|container|debian|docker|ec2-user|git|gpu|guest|home|host|jovyan|"
    "kaggle|local|localhost|main|music|node|nobody|opc|root|runner|server|student|test|tester|ubuntu|users?|vagrant|vscode|work|"
    "worker|workspace",
    re.IGNORECASE,
)
"""Names of users and machines that tell nothing, or mean something else."""

TEXTS = (".md", ".html", ".txt", ".csv", ".tsv", ".jsonl", ".svg", ".xml", ".log", ".toml", ".cfg", ".ini", ".css")
VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)
"""Files whose words are no texts: they are looked at, and never changed."""

EMBEDDED = re.compile(r"(?i)data:([\w.+/$&!#^-]*)((?:;\s*[\w-]+=[\w\"'.-]+)*);\s*base64,\s*([A-Za-z0-9+/=%_-]*)")

ESCAPED = re.compile(r"\\u([0-9A-Fa-f]{4})|\\x([0-9A-Fa-f]{2})|\\u\{0*([0-9A-Fa-f]{1,4})\}|\\U0000([0-9A-Fa-f]{4})")
"""Characters as JSON, YAML and scripts may write them."""


class Owner:
    """Whose machine this is: the folders and the names that nobody else needs to know.

    Args:
        folders: Absolute paths.
        names: Of users and machines.
        kept: A text in which names stay, such as the id of the repository.
    """

    def __init__(self, folders: Iterable[str], names: Iterable[str] = (), kept: str = "") -> None:
        self.folders = sorted({f.rstrip("\\/") for f in folders if len(f.strip("\\/")) > 1}, key=len, reverse=True)
        self.names = sorted({n for n in names if len(n) > 2 and not ORDINARY.fullmatch(n)}, key=len, reverse=True)
        self._kept = kept
        places = "|".join(_in_any_notation(folder) for folder in self.folders)
        self._folder = (
            re.compile(rf"(?<![A-Za-z0-9.])(?:file:/{{0,2}})?(?:{places})(?![\w-]){REST}*") if places else None
        )
        words = "|".join(_in_any_notation(name) for name in self.names)
        begin = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-F]{2})|(?<=\\x[0-9A-Fa-f]{2}))"
        self._name = re.compile(rf"{begin}(?:{words})(?![A-Za-z0-9])") if words else None

    @classmethod
    def here(cls, run: Path, values: Any, kept: str = "") -> Self:
        """Of this process.

        Args:
            run: A folder that is published.
            values: Its recipe, whose paths are as private as those of the user's own folders.
            kept: A text in which names stay.
        """
        users = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")]
        with suppress(OSError, KeyError):
            users.append(getpass.getuser())
        hosts = [socket.gethostname()]
        homes = [str(Path("~").expanduser()), os.environ.get("HOME", ""), os.environ.get("USERPROFILE", "")]
        places = [*homes, str(Path.cwd()), str(run.absolute()), str(run.absolute().parent), tempfile.gettempdir()]
        places += [os.environ.get("PARTITA_CACHE", ""), os.environ.get("HF_HOME", "")]
        places += [str(Path(text).expanduser().absolute()) for text in _paths(values)]
        places += [str(Path(place).resolve()) for place in places if place]
        found = [form for place in places if place for form in _forms(place)]
        owners = [Path(home).name for home in homes if home]
        named = [form for name in (*users, *owners, *hosts, hosts[0].split(".")[0]) for form in _forms(name)]
        return cls(found, named, kept)

    def text(self, text: str, names: bool = True) -> str:
        r"""A text, its paths cut down to their last names.

        >>> Owner(["/srv/zoe"], ["zoe"]).text(r"from /srv/zoe/new songs, see file:///home/x/a.wav and C:\Users\x")
        'from new songs, see a.wav and home'
        """
        parts = EMBEDDED.split(text)  # text, kind, parameters, content, text, …
        for i in range(0, len(parts), 4):
            parts[i] = self._plain(parts[i], names)
        for i in range(1, len(parts), 4):
            parts[i + 2] = self._embedded(parts[i], parts[i + 2])
            parts[i] = f"data:{parts[i]}{parts[i + 1]};base64,"
            parts[i + 1] = ""
        return "".join(parts)

    def value(self, value: Any, key: str = "", names: bool = True) -> Any:
        """The same of nested data, of keys and values."""
        if isinstance(value, Mapping):
            return {self._key(k, names): self.value(v, str(k), names and k not in STRUCTURE) for k, v in value.items()}
        if isinstance(value, list):
            return [self.value(item, key, names) for item in value]
        if not isinstance(value, str):
            return value
        if is_path(value, key):
            value = last_name(value)
        return self.text(value, names)

    def _key(self, key: Any, names: bool) -> Any:
        return self.text(key, names and not re.fullmatch(r"\w+", key)) if isinstance(key, str) else key

    def file(self, name: str, content: Path | bytes) -> Path | bytes:
        """A file as it may be published: itself where it tells nothing.

        Raises:
            PartitaError: It tells something that cannot be taken out.
        """
        path, last = Path(name), name.split("/")[-1]
        suffix = path.suffix.lower()
        if self._tells(name, names=False):
            raise PartitaError(f"{name}: the name of the file tells about this machine: rename it")
        if suffix == ".safetensors":
            if isinstance(content, Path):
                self._check_header(content, name)
            return content
        data = content if isinstance(content, bytes) else content.read_bytes()
        if suffix not in (*TEXTS, ".json", ".yaml", ".yml") or last in VOCABULARIES:
            words = data.decode(errors="replace") if last in VOCABULARIES else ""
            if self._in_bytes(data) or self._tells(words, names=False):
                raise _refused(name)
            return content
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise PartitaError(f"{name} is no text in UTF-8, and so cannot be searched for private paths") from None
        written = self._rewritten(path, text)
        if self._tells(written, names=suffix in TEXTS):
            raise _refused(name)
        return content if written == text else written.encode()

    def _rewritten(self, path: Path, text: str) -> str:
        try:
            if path.suffix.lower() == ".json":
                values = json.loads(text)
                new = self.value(values, names=path.name != "config.json" and "tokenizer" not in path.name)
                if new == values:
                    return text
                written = json.dumps(new, indent=2, ensure_ascii=False)
                return written.encode(errors="backslashreplace").decode()  # half a character has an escape in JSON
            if path.suffix.lower() in (".yaml", ".yml"):
                values = yaml.safe_load(text)
                new = self.value(values)
                written = yaml.safe_dump(new, sort_keys=False, allow_unicode=True)
                return text if new == values and not set("#&!") & set(text) else written  # comments, anchors: gone
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise PartitaError(f"{path} cannot be searched for private paths: {str(error)[:200]}") from None
        return (self._kept or "\0").join(self.text(part) for part in text.split(self._kept or "\0"))

    def _plain(self, text: str, names: bool) -> str:
        for pattern in ([self._folder] if self._folder else []) + PATHS:
            text = pattern.sub(lambda found: last_name(found[0]), text)
        return self._name.sub("user", text) if self._name and names else text

    def _embedded(self, kind: str, content: str) -> str:
        with suppress(ValueError):
            letters = unquote(content).rstrip("=").translate(str.maketrans("-_", "+/"))
            letters = letters[:-1] if len(letters) % 4 == 1 else letters  # cut off
            data = base64.b64decode(letters + "=" * (-len(letters) % 4))
            if kind.lower().startswith("text/") or kind.lower().endswith(("json", "xml", "javascript")):
                wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
                text = data.decode("utf-16" if wide else "utf-8", "replace")
                new = self.text(text)
                return content if new == text else base64.b64encode(new.encode()).decode()
            if self._in_bytes(data) or self._in_bytes(content.encode()):
                raise PartitaError("a picture or a sound in a page names a folder of this machine: make the page again")
        return content

    def _check_header(self, path: Path, name: str) -> None:
        entries, _ = header_entries(path)
        told = json.dumps(entries.get("__metadata__", {}), ensure_ascii=False)
        if self._tells(json.dumps(list(entries), ensure_ascii=False), names=False) or self.text(told) != told:
            raise PartitaError(
                f"{name}: the header of the file tells about this machine: load the system and save it with "
                "system.save, which writes no such thing"
            )

    def _in_bytes(self, data: bytes) -> bool:
        """Whether a folder stands in bytes; of a short one, only with what follows it."""
        for folder in self.folders:
            said = folder if len(folder) > 7 else f"{folder}/"
            if any(said.encode(form, "surrogatepass") in data for form in ("utf-8", "utf-16-le", "utf-16-be")):
                return True
        return False

    def _tells(self, text: str, names: bool) -> bool:
        """Whether a folder or a name stands in a text, in any notation."""
        without = EMBEDDED.sub("", text).replace(self._kept or "\0", "")
        for view in _readings(without):
            if self._folder and self._folder.search(view):
                return True
            if names and self._name and self._name.search(view):
                return True
        return False


def publishable(files: Mapping[str, Path | bytes], owner: Owner) -> dict[str, Path | bytes]:
    """Files by their path in a repository, without what tells of the machine that they are from.

    Raises:
        PartitaError: A file tells something that cannot be taken out; the message says which.
    """
    return {name: owner.file(name, content) for name, content in files.items()}


def is_path(text: str, key: str = "") -> bool:
    """Whether a text, as a whole, is a path: by its beginning, or as the value of a key that takes paths.

    A hub id (``user/name``) is none, unless there is such a file here.
    """
    if "\n" in text:
        return False
    deep = text.count("/") + text.count("\\") > (1 if key in ("weights", "name_or_path") else 0)
    if key in PLACES:
        there = bool(re.search(r"[\\/]", text)) and kind(text) != ""
        return bool(WHOLE.fullmatch(text)) or deep or there
    return bool(WHOLE.fullmatch(text)) and (not re.search(r"\s", text) or kind(text) != "")


def last_name(path: str) -> str:
    r"""The last name of a path in any notation, without that of a user.

    >>> last_name("/srv/music/bach/"), last_name(r"C:\Users\zoe"), last_name("file:///home/zoe/my%20song.wav")
    ('bach', 'home', 'my%20song.wav')
    """
    names = [name for name in re.split(SEPARATOR, path) if name and name not in (".", "..")]
    if len(names) > 1 and names[-2] in ("home", "Users") and len(names) < 5:
        return "home"
    last = names[-1] if names else ""
    return "data" if last in ("", "file:") or re.fullmatch(r"[A-Za-z]:|~.*", last) else last


def _refused(name: str) -> PartitaError:
    return PartitaError(
        f"{name} names a folder or the user of this machine in a way that cannot be rewritten: take it out, or leave "
        "the file out"
    )


def _paths(value: Any, key: str = "") -> Iterator[str]:
    """All values of nested data that are paths."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _paths(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, key)
    elif isinstance(value, str) and is_path(value, key) and not value.startswith("file:"):
        yield value


def _forms(text: str) -> list[str]:
    """The ways in which file systems write the same letters, with accents apart and not."""
    return [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]


def _in_any_notation(text: str) -> str:
    """A pattern for a text, each letter as it is, or as addresses, JSON and pages may write it."""
    return "".join(_letter(letter) for letter in text)


def _letter(letter: str) -> str:
    if letter in "\\/":
        return SEPARATOR
    code, address = ord(letter), "".join(f"%(?:25)*{byte:02x}" for byte in letter.encode("utf-8", "surrogatepass"))
    written = rf"\\{{1,4}}(?:u{code:04x}|u\{{0*{code:x}\}}|U{code:08x}|x{code:02x})"
    entity = rf"&(?:amp;)*#(?:0*{code}|x0*{code:x});"
    return rf"(?:{re.escape(letter)}|(?i:{address}|{written}|{entity}))"


def _readings(text: str) -> Iterator[str]:
    """A text as it is, and as it reads in addresses, pages and JSON, and in two of them after each other."""
    readings = (unquote, html.unescape, _unescaped)
    yield text
    for first in readings:
        once = first(text)
        if once != text:
            yield once
            yield from (read(once) for read in readings)


def _unescaped(text: str) -> str:
    text = ESCAPED.sub(lambda found: chr(int(next(filter(None, found.groups())), 16)), text)
    return re.sub(r"\\([\\/])", r"\1", text)

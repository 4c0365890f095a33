"""Removal of data that identifies a machine or its user from files that are published.

Paths are reduced to their last component, and names of the user and of the machine are replaced. The result is then
searched again in every notation, and a file that still contains private data is rejected.
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
"""Patterns of paths inside a text: file URLs, Windows paths, home folders, parent folders, paths below well-known
roots, absolute paths with at least two components, and network paths."""

WHOLE = re.compile(r"(?:file:|~[\w.-]*(?:[\\/]|$)|[\\/]|\.\.?[\\/]|[A-Za-z]:[\\/]).*", re.DOTALL)
"""Pattern of a text that is a path as a whole."""

STRUCTURE = ("tokenizers", "conditioners", "stages", "trainer", "name", "preset")
"""Keys of a recipe whose contents are kept even if they contain the name of a user."""

PATH_KEYS = ("path", "manifest", "weights", "name_or_path")
"""Keys whose values are paths or plain names."""

ORDINARY = re.compile(
    "admin|administrator|app|build|builder|codespace|container|debian|docker|ec2-user|git|gpu|guest|home|host|jovyan|"
    "kaggle|local|localhost|main|music|node|nobody|opc|root|runner|server|student|test|tester|ubuntu|users?|vagrant|vscode|work|"
    "worker|workspace",
    re.IGNORECASE,
)
"""Names of users and machines that identify nobody, or that are ordinary words."""

TEXTS = (".md", ".html", ".txt", ".csv", ".tsv", ".jsonl", ".svg", ".xml", ".log", ".toml", ".cfg", ".ini", ".css")
VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)
"""Names of files with a vocabulary, which are searched but never changed."""

EMBEDDED = re.compile(r"(?i)data:([\w.+/$&!#^-]*)((?:;\s*[\w-]+=[\w\"'.-]+)*);\s*base64,\s*([A-Za-z0-9+/=%_-]*)")

ESCAPED = re.compile(r"\\u([0-9A-Fa-f]{4})|\\x([0-9A-Fa-f]{2})|\\u\{0*([0-9A-Fa-f]{1,4})\}|\\U0000([0-9A-Fa-f]{4})")
"""Escape sequences of characters in JSON, YAML and scripts."""


class Owner:
    """The private folders and names of this machine and its user.

    Args:
        folders: Absolute paths of private folders.
        names: Names of users and machines.
        kept: Text whose names are not private, such as the id of the repository.
    """

    def __init__(self, folders: Iterable[str], names: Iterable[str] = (), kept: str = "") -> None:
        self.folders = sorted({f.rstrip("\\/") for f in folders if len(f.strip("\\/")) > 1}, key=len, reverse=True)
        self.names = sorted({n for n in names if len(n) > 2 and not ORDINARY.fullmatch(n)}, key=len, reverse=True)
        self._kept = kept
        places = "|".join(_pattern_in_any_notation(folder) for folder in self.folders)
        self._folder = (
            re.compile(rf"(?<![A-Za-z0-9.])(?:file:/{{0,2}})?(?:{places})(?![\w-]){REST}*") if places else None
        )
        words = "|".join(_pattern_in_any_notation(name) for name in self.names)
        begin = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-F]{2})|(?<=\\x[0-9A-Fa-f]{2}))"
        self._name = re.compile(rf"{begin}(?:{words})(?![A-Za-z0-9])") if words else None

    @classmethod
    def here(cls, run: Path, values: Any, kept: str = "") -> Self:
        """Return the owner of the current process.

        Args:
            run: Folder that is published.
            values: Recipe of the run, whose paths are private, too.
            kept: Text whose names are not private.
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
        r"""Return a text in which paths are reduced to their last components and private names are replaced.

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
        """Return nested data in whose keys and values paths are reduced and private names are replaced."""
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
        """Return the content of a file without private data, unchanged if it contains none.

        Raises:
            PartitaError: The file contains private data that cannot be removed.
        """
        path, last = Path(name), name.split("/")[-1]
        suffix = path.suffix.lower()
        if self._reveals_owner(name, names=False):
            raise PartitaError(f"{name}: the name of the file contains private data: rename it")
        if suffix == ".safetensors":
            if isinstance(content, Path):
                self._check_header(content, name)
            return content
        data = content if isinstance(content, bytes) else content.read_bytes()
        if suffix not in (*TEXTS, ".json", ".yaml", ".yml") or last in VOCABULARIES:
            words = data.decode(errors="replace") if last in VOCABULARIES else ""
            if self._in_bytes(data) or self._reveals_owner(words, names=False):
                raise _refused(name)
            return content
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise PartitaError(f"{name} is not a text in UTF-8 and cannot be searched for private paths") from None
        written = self._rewritten(path, text)
        if self._reveals_owner(written, names=suffix in TEXTS):
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
                return written.encode(errors="backslashreplace").decode()  # JSON can escape half of a surrogate pair
            if path.suffix.lower() in (".yaml", ".yml"):
                values = yaml.safe_load(text)
                new = self.value(values)
                written = yaml.safe_dump(new, sort_keys=False, allow_unicode=True)
                return text if new == values and not set("#&!") & set(text) else written  # drops comments
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
                raise PartitaError("an image or sound in a page contains a path of this machine: create the page again")
        return content

    def _check_header(self, path: Path, name: str) -> None:
        entries, _ = header_entries(path)
        metadata = json.dumps(entries.get("__metadata__", {}), ensure_ascii=False)
        if (
            self._reveals_owner(json.dumps(list(entries), ensure_ascii=False), names=False)
            or self.text(metadata) != metadata
        ):
            raise PartitaError(
                f"{name}: the header of the file contains private data: load the system and save it with "
                "system.save, which writes no such header"
            )

    def _in_bytes(self, data: bytes) -> bool:
        """Return whether bytes contain a private folder; a short path must be followed by a slash to count."""
        for folder in self.folders:
            searched = folder if len(folder) > 7 else f"{folder}/"
            if any(searched.encode(form, "surrogatepass") in data for form in ("utf-8", "utf-16-le", "utf-16-be")):
                return True
        return False

    def _reveals_owner(self, text: str, names: bool) -> bool:
        """Return whether a text contains a private folder or name in any notation."""
        without = EMBEDDED.sub("", text).replace(self._kept or "\0", "")
        for view in _unescaped_forms(without):
            if self._folder and self._folder.search(view):
                return True
            if names and self._name and self._name.search(view):
                return True
        return False


def publishable(files: Mapping[str, Path | bytes], owner: Owner) -> dict[str, Path | bytes]:
    """Return files by their path in a repository, without data that identifies their machine or its user.

    Raises:
        PartitaError: Private data cannot be removed from a file, which the message names.
    """
    return {name: owner.file(name, content) for name, content in files.items()}


def is_path(text: str, key: str = "") -> bool:
    """Return whether a whole text is a path, judged by its beginning or by a key that takes paths.

    A hub id (``user/name``) is not a path, unless a local file has this name.
    """
    if "\n" in text:
        return False
    deep = text.count("/") + text.count("\\") > (1 if key in ("weights", "name_or_path") else 0)
    if key in PATH_KEYS:
        there = bool(re.search(r"[\\/]", text)) and kind(text) != ""
        return bool(WHOLE.fullmatch(text)) or deep or there
    return bool(WHOLE.fullmatch(text)) and (not re.search(r"\s", text) or kind(text) != "")


def last_name(path: str) -> str:
    r"""Return the last component of a path in any notation, or ``home`` if that is the name of a user.

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
        f"{name} contains a path or the user's name of this machine in a form that cannot be removed: edit the file, "
        "or leave it out"
    )


def _paths(value: Any, key: str = "") -> Iterator[str]:
    """Yield all paths among the values of nested data."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _paths(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, key)
    elif isinstance(value, str) and is_path(value, key) and not value.startswith("file:"):
        yield value


def _forms(text: str) -> list[str]:
    """Return a text with composed and with decomposed accents, because file systems differ in this."""
    return [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]


def _pattern_in_any_notation(text: str) -> str:
    """Return a pattern for a text in which each character can be plain or escaped as in URLs, JSON and HTML."""
    return "".join(_character_pattern(letter) for letter in text)


def _character_pattern(letter: str) -> str:
    if letter in "\\/":
        return SEPARATOR
    code, address = ord(letter), "".join(f"%(?:25)*{byte:02x}" for byte in letter.encode("utf-8", "surrogatepass"))
    written = rf"\\{{1,4}}(?:u{code:04x}|u\{{0*{code:x}\}}|U{code:08x}|x{code:02x})"
    entity = rf"&(?:amp;)*#(?:0*{code}|x0*{code:x});"
    return rf"(?:{re.escape(letter)}|(?i:{address}|{written}|{entity}))"


def _unescaped_forms(text: str) -> Iterator[str]:
    """Yield a text as it is, and unescaped as in URLs, HTML and JSON, by one or two of these in succession."""
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

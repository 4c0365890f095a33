"""Values that programs stumble over, and mutations of trees of plain values that keep most of their structure."""

import copy
import json
from random import Random
from typing import Any, NamedTuple

import yaml


class Raw(NamedTuple):
    """A text that stands in a YAML file as it is: tags, anchors, numbers without end."""

    text: str


NUMBERS = [0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e-300, 1e-9, 1e300, float("inf"), float("-inf"), float("nan")]
NUMBERS += [2**31, 2**63 - 1, -(2**63), 9_999_999, 10_000_001, 65_536, 1_000_000_000, 600, 601.0, True, False]

TEXTS = [
    "",
    " ",
    "x" * 300,
    "é" * 200,
    "x" * 5000,
    "???",
    "~",
    "~nobody/x",
    "None",
    "null",
    "yes",
    "\n\n",
    "\t",
    "%s{0}",
]
TEXTS += ["../../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/random", "/proc/self/mem", "/proc/kmsg", "pipe", "."]
TEXTS += [
    "${oc.env:HOME}",
    "${oc.decode:[1}",
    "${seed}",
    "${a",
    "${..data}",
    "${stages}",
    "${${seed}}",
    "${.}",
    "$${x}",
]
TEXTS += [
    "\x1b[31mred\x1b[0m",
    "[/b] markup [bold]",
    "{{ 7 * 7 }}",
    "{% for x in y %}",
    "\u202eevil",
    "\u2028",
    "a\u0301",
]
TEXTS += [
    "日本語",
    "🎵",
    "acoustic[1:]",
    "acoustic[:" + "9" * 5000 + "]",
    "acoustic/latents",
    "acoustic[2:1]",
    "-1",
    "1e400",
]
TEXTS += [
    "os.system",
    "../evil",
    "user/name",
    "a/b/c/d",
    "nan",
    "inf",
    "9" * 5000,
    "__class__",
    "training",
    "forward",
    "٣",
]
TEXTS += [
    "<script>alert(1)</script>",
    "'; DROP TABLE x; --",
    "C:\\Users\\x",
    "file:///etc/passwd",
    "http://localhost:1/x",
]

WORDS = ["toy-codec", "toy-letters", "toy-bigram", "toy-sines", "spectral-tiny", "soundstream-tiny", "semantic-tiny"]
WORDS += ["lookup", "autoregressive-tiny", "flow-tiny", "diffusion-tiny", "folder", "corpus", "kmeans", "log-mel-16khz"]
WORDS += ["cross", "prepend", "add", "text", "acoustic", "semantic", "cosine", "adam", "32-true", "bf16-mixed", "csv"]

ALIKE = [["toy-codec", "spectral-tiny", "soundstream-tiny", "log-mel-16khz"], ["toy-letters", "lookup", "t5-small"]]
ALIKE += [["toy-bigram", "toy-dice", "toy-echo", "autoregressive-tiny", "flow-tiny"], ["cross", "prepend", "add"]]
ALIKE += [["acoustic", "acoustic/latents", "acoustic[:1]", "semantic"], ["toy-sines", "toy-trained", "toy-silent"]]
"""Words that stand in for each other."""

KEYS = ["name", "preset", "weights", "fit", "base", "data", "seed", "stages", "tokenizers", "conditioners", "target"]
KEYS += [
    "given",
    "window",
    "overlap",
    "generator",
    "steps",
    "trainer",
    "features",
    "_target_",
    "__class__",
    "",
    "0",
    "x.y",
]
KEYS += ["9" * 5000, "é" * 200, "x" * 300, "null", "recipe", "vary", "self", "args", "kwargs", "description", "limit"]


def payload(canary: str) -> list[Any]:
    """What would leave a trace if it were executed, here or by a reader of YAML."""
    command = f"touch '{canary}'"
    return [
        Raw(f"!!python/object/apply:os.system [{json.dumps(command)}]"),
        Raw(f"!!python/object/apply:subprocess.check_output [[touch, {json.dumps(canary)}]]"),
        Raw(f"!!python/object/new:os.system [{json.dumps(command)}]"),
        Raw("!!python/name:os.system"),
        Raw("!!python/module:antigravity"),
        {"_target_": "os.system", "_args_": [command]},
        {"class_path": "os.system", "init_args": {"command": command}},
        {"name": "os.system", "command": command},
        f"__import__('os').system({command!r})",
        f"$(touch {canary})",
    ]


TAGGED = ["!!binary aGVsbG8=", "!!binary ?", "!!set {a, b}", "!!omap [a: 1]", "!!timestamp 2001-01-01", "2001-01-01"]
TAGGED += [
    "!!float abc",
    "!!int abc",
    "!!int 9e9",
    "!custom {a: 1}",
    "0o17",
    "0b1111",
    "1_000",
    "190:20:30",
    "0x_",
    "=",
    ".nan",
]
TAGGED += [
    "&a [*a]",
    "*nowhere",
    "&a {<<: *a}",
    "{? [a, b] : c}",
    "{<<: [1]}",
    '"\\uD800"',
    '"\\x1b[31m"',
    "[",
    "{a",
    "'",
    '"',
]
TAGGED += [
    "0x" + "f" * 9000,
    "9" * 9000,
    "-" + "9" * 9000,
    "1" * 30,
    "1e" + "9" * 400,
    "[" * 3000,
    "{a: " * 3000,
    "- - -",
]
TAGGED += [
    "[&b [&c [l,l],*c,*c,*c,*c],*b,*b,*b]",
    "@x",
    "`x`",
    "%x",
    "|\n  text",
    "!!null ''",
    "!!bool maybe",
    "\x00",
    "\t",
]


def structure(random: Random) -> Any:
    """Lists and mappings of unusual shape."""
    depth = random.choice([3, 50, 99, 101, 300])
    nested: Any = random.choice(NUMBERS)
    for _ in range(depth):
        nested = [nested] if random.random() < 0.5 else {"a": nested}
    length = random.choice([100, 5000, 60_000]) if random.random() < 0.1 else 20
    wide = {f"key{i}": i for i in range(length)} if random.random() < 0.5 else [random.choice(NUMBERS)] * length
    return random.choice(
        [[], {}, [[]], {"": ""}, [None], {1: 2}, {None: 1}, {True: False}, nested, wide, {"name": []}, {"preset": {}}]
    )


def hostile(random: Random, canary: str) -> Any:
    """Any value."""
    kinds = [NUMBERS, TEXTS, WORDS, payload(canary), [Raw(text) for text in TAGGED], [structure(random)], [None]]
    (kind,) = random.choices(kinds, [6, 5, 4, 1, 3, 1.5, 1])
    return copy.deepcopy(random.choice(kind))


def mutated(random: Random, tree: Any, canary: str, changes: int | None = None, gentle: bool = False) -> Any:
    """A copy of a tree with some changes, each to a place drawn at random; gentle ones to what could be meant."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice([1, 1, 1, 2, 2, 3, 5, 9]) if changes is None else changes):
        tree = _varied(random, tree) if gentle else _changed(random, tree, canary)
    return tree


def _varied(random: Random, tree: Any) -> Any:
    """A value replaced by another of its kind, so that what is behind the first checks is reached, too."""
    places = [place for place in _places(tree) if place[0] is not None]
    kinds = {id(node[key]): kind for node, key in places for kind in ALIKE if node[key] in kind}
    values = [(node, key) for node, key in places if isinstance(node[key], int | float) or id(node[key]) in kinds]
    if not values:
        return tree
    node, key = random.choice(values)
    old = node[key]
    if isinstance(old, str):
        node[key] = random.choice(kinds[id(old)])
    elif isinstance(old, int):
        node[key] = random.choice([0, 1, 2, 3, 5, 7, 16, 31, 100, 1000])
    else:
        node[key] = random.choice([0.0, 0.01, 0.1, 0.25, 0.5, 0.999, 1.0, 1.5, 3.0, 59.9])
    return tree


def _changed(random: Random, tree: Any, canary: str) -> Any:
    places = [place for place in _places(tree) if place[0] is not None]
    if not places or random.random() < 0.01:
        return hostile(random, canary)
    node, key = random.choice(places)
    old = node[key]
    match random.randrange(12):
        case 0:
            del node[key]
        case 1 if isinstance(node, dict):
            node[_misspelled(random, key)] = node.pop(key)
        case 2:
            other, where = random.choice(places)
            node[key], other[where] = copy.deepcopy(other[where]), old
        case 3:
            other, where = random.choice(places)
            node[key] = copy.deepcopy(other[where])
        case 4:
            node[key] = random.choice([[old], {"a": old}, {"preset": old}, {"name": old}, [old, old], str(old)])
        case 5 if isinstance(node, dict):
            node[random.choice(KEYS)] = hostile(random, canary)
        case 6 if isinstance(node, list):
            node.insert(random.randrange(len(node) + 1), hostile(random, canary))
        case 7 | 8 if isinstance(old, int | float) and not isinstance(old, bool):
            node[key] = random.choice([-old, old * 10 ** random.randrange(12), old / 3, str(old), old + 1e-9, old - 1])
        case 7 | 8 if isinstance(old, str) and old:
            node[key] = random.choice([old.upper(), old + " ", old[:-1], f"{old}/{old}", f"{old}[1:]", old * 40])
        case _:
            node[key] = hostile(random, canary)
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every place in a tree that holds a value: its mapping or list, and its key there."""
    found: list[tuple[Any, Any]] = [(None, None)]
    around = [tree]
    while around and len(found) < 5000:
        node = around.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in items:
            found.append((node, key))
            around.append(value)
    return found


def _misspelled(random: Random, key: Any) -> Any:
    text = str(key)
    return random.choice(
        [text[::-1], text + "s", text.upper(), text[1:], f"{text}.{text}", random.choice(KEYS), 1, None]
    )


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def yaml_of(tree: Any) -> str:
    """A tree as YAML, with what is :class:`Raw` as it is."""
    raws: list[str] = []

    def note(dumper: Any, raw: Raw) -> Any:
        raws.append(raw.text)
        return dumper.represent_str(f"RAW{len(raws) - 1}RAW")

    _Dumper.add_representer(Raw, note)
    try:
        text = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)
    except RecursionError:  # what is nested in what is nested
        return "a: " + "[" * 1000 + "]" * 1000
    for i, raw in enumerate(raws):
        text = text.replace(f"RAW{i}RAW", raw)
    return text


def noisy(random: Random, content: bytes) -> bytes:
    """Bytes with some of them flipped, doubled or gone, or in another guise."""
    data = bytearray(content)
    match random.randrange(9):
        case 0:
            data = data[: random.randrange(len(data) + 1)]
        case 1:
            for _ in range(random.randrange(1, 20)):
                if data:
                    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        case 2:
            data = data + data
        case 3:
            data = bytearray(content.decode("utf-8", "replace").encode("utf-16"))
        case 4:
            data = bytearray(b"\xef\xbb\xbf") + data.replace(b"\n", b"\r\n")
        case 5:
            data = bytearray(b"%YAML 1.1\n---\n") + data + b"\n---\na: 1\n"
        case 6:
            lines = data.split(b"\n")
            lines.insert(random.randrange(len(lines)), random.choice(lines))
            data = bytearray(b"\n".join(lines))
        case 7:
            at = random.randrange(len(data) + 1)
            data[at:at] = random.choice([b"\x00", b"\t", b"\xff\xfe", b"\x85", b"\x1b", b"#", b": ", b"\n  "])
        case 8:
            at, length = random.randrange(len(data) + 1), random.randrange(1, 200)
            del data[at : at + length]
    return bytes(data)

"""The command that lists recipes, parts and presets, and describes their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import partita

from ..core.console import columns, out
from ..core.registry import COMPONENTS, REGISTERED, did_you_mean, lookup, names
from ..core.schema import SUPPLIED, arguments, in_recipes, nested, part_type, plain, type_name
from ..errors import PartitaError
from ..publishing.known import CHECKPOINTS
from ..recipe.compose import preset_values
from ..recipe.recipe_files import comment, find_preset, find_recipe, presets, recipes
from ..recipe.slots import inline_yaml

GROUPS = ("recipe", "ablation", "published")
"""What can be listed besides the families of parts."""


def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[FAMILY[/NAME]]",
            help="Family, part, preset, recipe, ablation, published (checkpoints), or fit (training options).",
        ),
    ] = None,
) -> None:
    """List recipes, parts and presets, or the arguments of one part."""
    show(what, out)


def show(what: str | None, out: Console) -> None:
    """Print all recipes, parts and presets, those of one family, the text of a file, or the arguments of one part.

    Args:
        what: A family, a part or preset as ``name`` or ``family/name``, a recipe, an ablation, ``published`` or
            ``fit``. ``None`` prints everything.
        out: Console to print to.

    Raises:
        PartitaError: The family or name does not exist.
    """
    if what == "fit":
        _fit_options(out)
        return
    if what and (what.startswith("recipe/") or what in recipes()):
        out.print(find_recipe(what.removeprefix("recipe/")).read_text(encoding="utf-8"))
        return
    if what and (path := find_preset("ablation", what.removeprefix("ablation/"))) is not None:
        out.print(path.read_text(encoding="utf-8"))
        return
    if what and "/" in what:
        _describe(out, *what.split("/", 1))
        return
    if what and what not in (*REGISTERED, *GROUPS):
        named = [family for family in REGISTERED if what in presets(family) or what in names(family)]
        if len(named) == 1:
            _describe(out, named[0], what)
            return
        if named:
            raise PartitaError(f"{what} is in several families: list {' or '.join(f'{one}/{what}' for one in named)}")
        known = [name for family in REGISTERED for name in (*presets(family), *names(family))]
        hint = did_you_mean(what, [*REGISTERED, *GROUPS, "fit", *recipes(), *presets("ablation"), *known])
        raise PartitaError(f"there is no family, recipe, ablation or part {what!r}{hint}")
    if what in (None, "recipe"):
        _table(out, "recipes", recipes())
    if what in (None, "ablation"):
        _table(out, "ablations", presets("ablation"))
    if what in (None, "published"):
        _table(out, "published: checkpoints for `partita import`", CHECKPOINTS)
    if what == "data":
        out.print("Several sources can be mixed with sampling weights: data: [chorales, {name: folder, …, weight: 2}]")
    for family in REGISTERED:
        if what in (None, family):
            _table(out, f"{family}: parts", {f"{family}/{name}": line for name, line in names(family).items()})
            _table(out, f"{family}: presets", {f"{family}/{name}": line for name, line in presets(family).items()})


def _table(out: Console, title: str, rows: dict[str, str]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, line in rows.items():
        table.add_row(f"  {name}", line)
    out.print(table)


def _describe(out: Console, family: str, name: str) -> None:
    """Print the arguments of a part with types, defaults and descriptions, and the values that a preset sets."""
    if family not in REGISTERED:
        raise PartitaError(f"no family {family!r}{did_you_mean(family, REGISTERED)}")
    values = preset_values(family, name)
    preset = name in presets(family)
    if preset:
        path = find_preset(family, name)
        out.print(_titled(f"{family}/{name}", comment(path) if path else ""))
    cls = lookup(family, values["name"])
    out.print(_titled(f"{family}/{cls.registered_name}", (cls.__doc__ or "").strip().split("\n")[0]))
    if family == "field":
        others = f" Also called {', '.join(cls.aliases)}." if cls.aliases else ""
        out.print(Text(f"A value is {cls.expected}.{others}"))
        return
    skip = SUPPLIED if family == "generator" else ()
    out.print(_arguments(cls, values if preset else None, skip))
    if family == "generator":
        out.print(f"Supported fusions: {', '.join(cls.fusions)}.")
    if family == "score":
        for line in cls.description():
            out.print(line)
    elif family in COMPONENTS:
        out.print(f"This is a component of a part, selected by the key: {family}: {name}", style="dim")
    elif family != "data":
        out.print("Training options (the `fit:` block): partita list fit", style="dim")


def _titled(name: str, text: str) -> Text:
    return Text.assemble((name, "bold"), f": {text}")


def _fit_options(out: Console) -> None:
    out.print(_titled("fit", "training options of a part; every preset includes such a block"))
    out.print(_arguments(partita.Fit, None, ()))


def _arguments(cls: type, values: dict[str, Any] | None, skip: Sequence[str]) -> Table:
    """Return a table of arguments, with dotted names for groups. ``values`` are those that a preset sets."""
    table = columns("argument", "type", "default", *(["here"] if values is not None else []), "")

    def add(cls: type, values: Any, before: str) -> None:
        for argument in arguments(cls).values():
            if argument.name in skip:
                continue
            set_here = values.get(argument.name) if isinstance(values, dict) else None
            group = nested(argument.type)
            if group is not None:
                add(group, None if values is None else set_here or {}, f"{before}{argument.name}.")
                continue
            default = "required" if argument.required else inline_yaml(plain(argument.default))
            inner = _filled(part_type(argument.type).family, set_here) if part_type(argument.type) and set_here else {}
            shown = inner.get("name", set_here)
            here = ["" if shown is None else inline_yaml(plain(shown))] if isinstance(values, dict) else []
            table.add_row(before + argument.name, type_name(argument.type), default, *here, in_recipes(argument.doc))
            for name, value in inner.items():
                if name != "name":
                    table.add_row(f"{before}{argument.name}.{name}", "", "", inline_yaml(plain(value)), "")

    add(cls, values, "")
    return table


def _filled(family: str, slot: Any) -> dict[str, Any]:
    """Return the name and arguments of the part that a preset puts into a nested slot."""
    values = dict(slot) if isinstance(slot, dict) else {"preset": slot}
    preset = values.pop("preset", None)
    return (preset_values(family, preset) if preset else {}) | values

"""Experiment trackers that a recipe can use, and their options."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ..core.registry import did_you_mean

OPTIONS: dict[str, tuple[str, ...]] = {
    "csv": (),
    "tensorboard": (),
    "wandb": ("project", "entity", "group", "name", "notes", "tags", "mode"),
    "mlflow": ("experiment_name", "run_name", "tracking_uri", "tags"),
    "trackio": ("project", "group", "name", "space_id", "server_url"),
}
"""Options of each tracker that a recipe can set."""

DEFAULT = ("csv", "tensorboard")


def check_loggers(value: Any) -> list[str]:
    """Return a message for each mistake in ``trainer.logger`` of a recipe.

    >>> check_loggers(["csv", "tensorboard"])
    []
    >>> check_loggers("wandbb")
    ["there is no logger 'wandbb': did you mean 'wandb'?"]
    """
    try:
        chosen = chosen_loggers(value)
    except TypeError as error:
        return [str(error)]
    wrong = []
    for name, options in chosen.items():
        if name not in OPTIONS:
            wrong.append(f"there is no logger {name!r}{did_you_mean(name, OPTIONS)}")
            continue
        if name not in DEFAULT and find_spec(name) is None:
            wrong.append(f"the logger {name} needs a package that is not installed: pip install {name}")
        for option in options:
            if option not in OPTIONS[name]:
                wrong.append(f"the logger {name} takes no option {option!r}{did_you_mean(option, OPTIONS[name])}")
    return wrong


def chosen_loggers(value: Any) -> dict[str, dict[str, Any]]:
    """Return the trackers that a recipe uses, each with its options.

    Raises:
        TypeError: The value has none of the accepted types.
    """
    if value is None or value is True:
        return {name: {} for name in DEFAULT}
    if value is False:
        return {}
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = dict.fromkeys(value)
    if not isinstance(value, dict) or not all(isinstance(o, dict | None) for o in value.values()):
        raise TypeError(f"expected the name of a logger, a list of names, or a mapping to options, got {value!r}")
    return {name: dict(options or {}) for name, options in ({"csv": None} | value).items()}

"""The registered components of stages at a small size: those of their tiny preset, made smaller where they can be."""

from dataclasses import replace

import torch

from partita.core.registry import lookup, names
from partita.core.schema import arguments, build
from partita.recipe.compose import preset_values
from partita.recipe.recipe_files import presets

SIZES = {"width": 16, "depth": 2, "num_heads": 2}


def registered(family):
    return [name for name in names(family) if not name.startswith("toy")]


def small(family, name):
    """A component of the tiny preset, or of its defaults where it has none, 16 wide and 2 deep."""
    cls = lookup(family, name)
    own = [preset for preset in presets(family) if preset_values(family, preset)["name"] == name]
    tiny = next((preset for preset in own if preset.endswith("tiny")), None)
    values = {k: v for k, v in preset_values(family, tiny).items() if k != "name"} if tiny else {}
    values |= {key: value for key, value in SIZES.items() if key in arguments(cls)}
    return build(cls, values)


def shaken(module):
    """The same module with weights that are zero at the start drawn at random, so that nothing is switched off."""
    draw = torch.Generator().manual_seed(2)
    for weight in module.parameters():
        if not weight.any():
            weight.data = 0.3 * torch.randn(weight.shape, generator=draw)
    return module


def changed(condition):
    """Another condition of the same shape."""
    values = condition.values
    other = -3 * values if values.is_floating_point() else values.roll(1, 0).flip(-1)
    return replace(condition, values=other)

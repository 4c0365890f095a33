"""A seeded attack on everything that reads what strangers write: recipes, folders, audio files, shards and so on.

A kind makes cases: the files of a folder, and the commands that are run on them. What :mod:`fuzzing.harness` then wants
is success or one message, within bounds of time and memory, with nothing executed and nothing written elsewhere.
"""

from .ablations import ablation
from .audio import audio
from .folders import folder
from .recipes import recipe
from .requests import request
from .shards import shards

KINDS = {"recipes": recipe, "ablations": ablation, "folders": folder, "audio": audio, "requests": request}
KINDS["shards"] = shards
"""By name, what makes a case: given random numbers and a :class:`fuzzing.place.Place`, its commands."""

COUNTS = {"recipes": 1000, "ablations": 100, "folders": 100, "audio": 100, "requests": 100, "shards": 100}
"""Cases of each kind in a whole attack."""

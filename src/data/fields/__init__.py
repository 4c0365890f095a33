"""The fields of a clip, one file for each registered field. Sources and conditioners do not belong here."""

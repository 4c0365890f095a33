"""What can be known of a clip, one registered field in a file each; sources and conditioners are not here."""

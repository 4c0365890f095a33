"""What every part is built on: the contracts between parts, their base class, the registry and the schema.

Nothing here knows a concrete part, a recipe or a system. Reading files that others wrote belongs in ``storage``.
"""

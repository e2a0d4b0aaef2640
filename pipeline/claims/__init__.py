"""TailorPO's own claims as experiments: what is measured on a base model, and which runs are compared."""

TABLES = ("order", "guidance", "steps", "strength")
"""The tables, in the order in which they are made."""

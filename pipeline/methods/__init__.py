"""Preference methods: one file each, with the same two verbs, `collect` and `loss`."""

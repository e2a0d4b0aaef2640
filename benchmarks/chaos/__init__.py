"""Kills whatever a run consists of, one after another, and looks whether it ends as if nothing had happened."""

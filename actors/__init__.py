"""Who runs where: Ray actors, the Ray Data plan and the Ray Train loop.

This floor may import `pipeline`; `pipeline` never imports Ray, and nothing here imports `jobs`.
"""

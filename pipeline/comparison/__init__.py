"""The plan of a comparison: its runs, what each may spend, which learning rate; actors/comparison.py does the rest."""

"""The papers in miniature: code beside its results. Run from a clone: `python -m experiments`."""

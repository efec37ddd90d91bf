"""Benchmarks: shmd, its peers and its floors, side by side in one run. ``python -m benchmarks --help``."""

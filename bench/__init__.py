"""Benchmarks: cases as data in ops/, timing in harness.py, limits of the machine in limits.py."""

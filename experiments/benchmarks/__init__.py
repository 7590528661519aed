"""Benchmarks of the selection core against other libraries: see README.md beside this file."""

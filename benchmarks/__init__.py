"""Benchmarks: ``python -m benchmarks`` runs them, one file per question."""

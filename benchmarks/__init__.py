"""What metarl costs, measured: ``python -m benchmarks.speed``."""

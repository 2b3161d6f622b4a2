"""The project's own benchmarks; ``make bench-NAME`` runs the module of that name."""

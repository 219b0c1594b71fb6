"""Benchmarks of whole steps, and the frozen inputs that they run on."""

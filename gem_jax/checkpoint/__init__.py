"""Checkpoints: named arrays with checksums and a manifest, restored on any mesh; the run's folder and history."""

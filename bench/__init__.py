"""Benchmarks of the whole process beside the OpenTelemetry Collector: `make bench`. Read next: `__main__.py`, then `cases.py`."""

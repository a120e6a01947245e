"""emp-pipe: a telemetry pipeline for fleets of GPU machines.

The base install is what workers import; `emp-pipe[edge]` and `emp-pipe[central]` bring the `emp-pipe` command.
Start reading at `pipeline.py`, or at `docs/architecture.md` for the picture.
"""

__version__ = "0.1.0"

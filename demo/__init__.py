"""The main job on one machine, with real clients and a destination that checks what arrives: `make demo`. Start at `__main__.py`."""

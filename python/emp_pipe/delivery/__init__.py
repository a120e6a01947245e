"""How blocks leave: the one delivery loop, and what it is made of.

`loop.py` is where to begin. It reads a group of the log, `prepare.py` turns deliveries into shipments, `gate.py` (with `adaptive.py` and
`breaker.py`) says when one may go, `attempts.py` sends it until it has ended, `settle.py` writes the end into the log.
"""

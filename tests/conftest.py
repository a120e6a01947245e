"""What holds for every test: how far property tests search, and that a run can be repeated.

`make test` prints its seed and `make test SEED=n` repeats it. `make fuzz` sets EMP_FUZZ_CASES: the same tests with many more examples, so
they set no `max_examples` of their own.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Wall-clock deadlines would make a busy machine fail a test that is right.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("short", max_examples=200, **_COMMON)
settings.register_profile("fuzz", max_examples=int(os.environ.get("EMP_FUZZ_CASES", "20000")), **_COMMON)
settings.load_profile("fuzz" if "EMP_FUZZ_CASES" in os.environ else "short")

"""For every test: children start with the default Ctrl-C, also where the tests run in the background of a shell, which ignores it; and no
property fails because the machine was busy: hypothesis' limits of time say nothing about ours."""

import signal

from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited through exec by every child, handlers are not
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("in_peace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("in_peace")

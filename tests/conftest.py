"""For every test: children start with the default Ctrl-C, also where the tests run in the background of a shell, which ignores it."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited through exec by every child, handlers are not
    signal.signal(signal.SIGINT, signal.default_int_handler)

"""`python -m wssl` is the command line `wssl`."""

import signal
import sys


def main():
    "`wssl.companion.cli.main`; until that is imported, Ctrl-C ends the process (`wssl.companion.options.starting`)."
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from wssl.companion.cli import main

    signal.signal(signal.SIGINT, before)
    return main()


if __name__ == "__main__":
    sys.exit(main())

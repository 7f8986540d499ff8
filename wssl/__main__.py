"""`python -m wssl` is the command line `wssl`."""

import sys

from wssl.companion.cli import main

if __name__ == "__main__":
    sys.exit(main())

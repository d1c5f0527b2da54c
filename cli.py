"""Command line of ickd_pl: ``python cli.py fit|validate|test|predict`` (the installed script is ``ickd``)."""

import sys

from ickd_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())

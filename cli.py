"""Command line of ickd_pl: ``python cli.py fit|validate|test|predict`` (the installed script is ``ickd``)."""

from ickd_pl.cli import script

if __name__ == "__main__":
    script()

"""Run the command line with ``python -m ickd_pl``."""

from ickd_pl.cli import script

if __name__ == "__main__":
    script()

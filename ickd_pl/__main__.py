"""``python -m ickd_pl``: the command line."""

from ickd_pl.cli import script

if __name__ == "__main__":
    script()

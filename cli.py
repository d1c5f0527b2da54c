"""Command line of ickd_pl: ``python cli.py fit|validate|test|predict`` (the installed script is ``ickd``)."""

if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C prints no traceback while Python imports
    from ickd_pl.cli import script

    script()

"""The table: methods x pairs x seeds, made by one command, and its report."""

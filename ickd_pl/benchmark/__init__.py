"""The benchmark: trains methods x pairs x seeds with one command and reports the results."""

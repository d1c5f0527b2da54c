"""The benchmark's teachers: a list of the published ones, fetching and checking them, training and measuring one."""

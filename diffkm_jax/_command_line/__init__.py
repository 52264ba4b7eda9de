"""The command line: a file of points fitted, another assigned, and a table."""

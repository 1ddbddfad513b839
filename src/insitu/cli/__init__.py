"""The command line: one command a file. Heavy imports are inside functions, so that ``--help`` is there at once."""

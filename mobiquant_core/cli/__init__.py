"""The commands of `python -m mobiquant_core`, one file each: `add(subparsers)` declares, `run(arguments)` does.

A command returns its JSON object and the lines for people; only __main__ writes to standard output.
"""

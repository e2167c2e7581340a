"""Exit codes of the commands.

A command that is done exits with 0.
"""

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

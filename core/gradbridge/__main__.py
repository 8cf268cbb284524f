"""``python -m gradbridge``: the command line."""

from gradbridge.cli import main

main()

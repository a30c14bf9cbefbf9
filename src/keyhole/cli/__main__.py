"""`python -m keyhole.cli`, where the package is not installed."""

from keyhole.cli.app import main

main()

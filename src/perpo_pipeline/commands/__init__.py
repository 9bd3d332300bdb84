"""What the command line offers, one file per command (cli.py puts them together)."""

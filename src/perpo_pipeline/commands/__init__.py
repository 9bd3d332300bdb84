"""What the command line offers: one short function a command (cli.py puts them together)."""

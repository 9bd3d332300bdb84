"""The parts of against_online.py: what is compared, how it runs, is measured and shown."""

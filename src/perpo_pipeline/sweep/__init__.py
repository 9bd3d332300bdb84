"""Many trainings by one file: cells that share what they can, the chosen setting, its evidence."""

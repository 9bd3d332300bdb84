"""The settings of a run: its YAML file, the sections and what each may hold."""

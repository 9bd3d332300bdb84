"""What ships beside the code: configurations, Make's rules, versions; the folder of a new run."""

"""Reports: one HTML page for each run."""

"""Reports: one standalone HTML page for each run, evaluation or comparison."""

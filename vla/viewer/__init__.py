"""The viewer of recorded episodes: a local server, standalone pages and exports."""

"""The policy server: actions over a websocket."""

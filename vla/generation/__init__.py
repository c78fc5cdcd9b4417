"""Text generation: sampling, beam search, log-probabilities, and the activation cache."""

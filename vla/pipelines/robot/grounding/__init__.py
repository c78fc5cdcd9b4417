"""Grounding of a small vision-language model: question answering about rendered scenes."""

"""Data: demonstrations, conversations, preferences and questions as tensors."""

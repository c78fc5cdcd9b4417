"""Exported policies as folders of the Hugging Face hub."""

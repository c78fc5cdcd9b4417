"""Policies as folders that load without a simulator, and the Hugging Face Hub."""

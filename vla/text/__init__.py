"""Text mode: problems, prompts, language models and training recipes."""

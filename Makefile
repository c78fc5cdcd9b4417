# `make check` is what a change must pass before it lands; `make fix` writes what can be written by a tool.
.PHONY: check format lint types imports tests fix docs

check: format lint types imports tests

format:
	uv run ruff format --check .

lint:
	uv run ruff check .

types:
	uv run mypy

imports:
	uv run lint-imports

tests:
	uv run pytest

fix:
	uv run ruff format .
	uv run ruff check --fix .

docs:
	uv run python -m sphinx -W --keep-going -b html docs docs/_build/html

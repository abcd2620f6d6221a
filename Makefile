# Everything runs in .venv, which scripts/setup.sh makes and heals. All paths are relative: the folder may have any
# name, spaces too.

.DEFAULT_GOAL := help
.PHONY: help demo federation test check bench venv clean

help: ## this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1	/'
	@echo
	@echo "  make venv PYTHON=python3.12     uses that Python instead of the first fitting one (3.11 to 3.13)"
	@echo "  make venv TORCH_INDEX=ADDRESS   takes PyTorch from that index: on Linux, PyTorch's CPU index saves"
	@echo "                                  gigabytes of CUDA packages (TORCH=... names another build)"

demo: venv ## run a small federation and write its report
	@.venv/bin/interfuse run demo

federation: venv ## a coordinator and four nodes as separate processes, with TLS and keys (ROUNDS=20)
	@sh scripts/federation.sh

# Where Python is told to keep no compiled files, each of the tests' many processes would compile everything anew.
test: venv ## run the tests
	@PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -n auto --dist worksteal

check: venv ## lint, format, types, and the direction of imports
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/python -m mypy
	.venv/bin/lint-imports --no-logo

bench: venv ## measure the speed beside other frameworks, in under 25 minutes (ARGS="--smoke --no-peers" for a look)
	.venv/bin/python benchmarks/everything.py $(ARGS)

venv: ## make or heal the environment (the other targets do so by themselves)
	@sh scripts/setup.sh

clean: ## remove the environment and all caches; runs stay
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# make check is what CI runs; it sets its environment up by itself.
.PHONY: check setup lint
check:
	bash .ci/run
setup:
	bash scripts/setup.sh
lint:
	ruff check .

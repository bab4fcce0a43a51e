# make demo               a meeting to look at and moderate; ARGS=--once ends after it, --nodes=2 is on two nodes
# make test               lint, then every test; ARGS="-k mute -x" is for pytest
# make lint               what can be said without running anything
# make server             build livekit-server into your cache directory, once
# make bench              measure, half an hour; ARGS=--quick takes four minutes
# make fuzz               attack a server by chance for ten minutes; ARGS="--seconds 60 --seed 7"
# make soak               several nodes under faults for ten minutes; ARGS="--seconds 90 --seed 7"
# make mutants            see which faults the tests would notice; ARGS="--only policy"
# make console            build the packages of examples/console
# make docs               the documentation, in docs/_build/html
# make schemas            describe the messages anew, in schemas/
# make lock               pin the dependencies anew; ARGS=--upgrade to the newest
# make clean              remove what was made here, .venv included
ARGS =
BIN = .venv/bin
COUNTED = tests/core tests/messages tests/test_schemas.py tests/test_strangers.py tests/test_view.py
ALONE = tests/benchmarks tests/cli/test_demo.py tests/deploying tests/soak

.PHONY: demo test lint server bench fuzz soak mutants console docs schemas lock clean

demo:
	@.ci/bootstrap demo $(ARGS)
	@$(BIN)/livekit-moderation demo $(ARGS)

# Counting lines takes as long again as the tests themselves, so only those that have to reach every branch are counted.
# Whole systems under load, with real sound or a figure, have the machine to themselves.
test: lint
	@.ci/bootstrap test
ifeq ($(strip $(ARGS)),)
	$(BIN)/coverage run -m pytest $(COUNTED)
	@uncovered=$$($(BIN)/coverage report --skip-covered --fail-under=100 \
		--include='signaling/core/*,signaling/messages/*') || { printf '%s\n' "$$uncovered"; exit 1; }
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile $(addprefix --ignore=,$(COUNTED) $(ALONE))
	$(BIN)/python -m pytest $(ALONE)
else
	$(BIN)/python -m pytest $(ARGS)
endif

lint:
	@.ci/bootstrap
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

server:
	@.ci/bootstrap
	@$(BIN)/livekit-moderation server install

bench:
	@.ci/bootstrap test
	@mkdir -p build
	@$(BIN)/python -m tests.benchmarks --json build/benchmarks.json $(ARGS)

fuzz:
	@.ci/bootstrap test
	@$(BIN)/python -m tests.fuzz $(ARGS)

soak:
	@.ci/bootstrap test
	@$(BIN)/python -m tests.soak $(ARGS)

mutants:
	@.ci/bootstrap test
	@$(BIN)/python -m tests.mutants $(ARGS)

console:
	@.ci/bootstrap
	@.ci/console npm run build

docs:
	@.ci/bootstrap
	@$(BIN)/sphinx-build -W --keep-going -n -q -b html docs docs/_build/html

schemas:
	@.ci/bootstrap
	@$(BIN)/python -m signaling.cli.schemas schemas

lock:
	@.ci/bootstrap
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" --all-extras --group dev pyproject.toml \
		-o .ci/requirements.lock $(ARGS)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" --group node -o .ci/node.lock $(ARGS)

clean:
	rm -rf .venv build dist docs/_build .coverage .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf examples/console/node_modules examples/console/*/dist examples/console/*/reference
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

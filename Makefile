# Every target installs what it needs: .venv from requirements.lock, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo demo-real server test test-pipeline lint docs lock clean help

demo: .venv/installed  ## run the demo: raw JSONL to compared adapters, in minutes on two CPU cores
	$(BIN)/python -m pipelines.finetune

demo-real: .venv/installed  ## fine-tune a real pretrained model, SmolLM2-135M, in about a quarter of an hour
	$(BIN)/python -m pipelines.demo_real

server: .venv/installed  ## start Prefect's server, the keeper and the agents of this machine
	$(BIN)/python -m flows.server

test: .venv/installed  ## run the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 25

# Five workers on two cores, since sites of agents often wait. Only files with such tests are imported.
test-pipeline: .venv/installed  ## run the integration tests: the real pipeline and whole sites
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m integration -n 5 --dist loadfile --no-loadscope-reorder --durations 40 \
	  tests/integration $$(grep -rl "mark.integration" tests --include="test_*.py" | grep -v tests/integration | sort)

lint: .venv/installed  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: .venv/docs-installed  ## build the documentation into docs/build/site, with strict link checks
	$(BIN)/python -m docs.generate --stage docs/build
	cd docs/build && for language in en zh; do ../../$(BIN)/zensical build --strict -f zensical.$$language.yml || exit 1; done

help:  ## list the targets
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch is installed first and alone: as part of the list, pip would consider other builds of it. pip compiles on one
# core, compileall on all of them; files that do not compile, such as templates, are no error for either.
.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is required; choose one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	@touch $@

.venv/docs-installed: .venv/installed docs/requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check -r docs/requirements.lock -c requirements.lock
	@touch $@

lock:  ## update requirements.lock from the version ranges in pyproject.toml
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/pip install --quiet torch==2.13.0
	.lock-venv/bin/pip install --quiet '.[dev]'
	.lock-venv/bin/pip freeze --exclude tuneline | sed 's/^\(torch==[0-9.]*\)+cpu$$/\1/' > requirements.lock
	rm -rf .lock-venv build tuneline.egg-info

clean:  ## remove generated files, but keep .venv
	rm -rf data/raw data/sources.json data/checked data/quarantine data/warned.jsonl data/question_fit.jsonl data/.review.json data/verdict data/params.json data/accepted.json data/accepted_general.json data/encoded data/general data/predictions/*/
	rm -rf models/weights/*/ models/checkpoints reports/validation reports/training/*/ reports/general/validation reports/general/*.json reports/metrics reports/*.json reports/comparison.* reports/question_fit.* reports/summary.*

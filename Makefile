# Each target sets up what it needs: .venv from requirements.lock, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo server test test-pipeline lint lock clean

demo: .venv/installed  ## raw JSONL in, compared adapters out: a few minutes on two CPU cores
	$(BIN)/python -m pipelines.finetune

server: .venv/installed  ## Prefect's server, keeper and agents for this machine, supervised
	$(BIN)/python -m flows.server

test: .venv/installed  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations 25

# Three at a time on two cores, since sites of agents often wait; in the order of their files, the longest first.
test-pipeline: .venv/installed  ## the real pipeline, minutes long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m integration -n 3 --dist loadfile --no-loadscope-reorder --durations 40

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# torch first and alone: elsewhere in the list pip would weigh other builds of it.
.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "Python's venv is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

lock:  ## fresh pins from the ranges in pyproject.toml
	rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	.lock-venv/bin/pip install --quiet torch==2.13.0
	.lock-venv/bin/pip install --quiet '.[dev]'
	.lock-venv/bin/pip freeze --exclude tuneline | sed 's/^\(torch==[0-9.]*\)+cpu$$/\1/' > requirements.lock
	rm -rf .lock-venv build tuneline.egg-info

clean:  ## what can be made again, but for .venv
	rm -rf data/raw data/sources.json data/checked data/quarantine data/verdict data/params.json data/accepted.json data/accepted_general.json data/encoded data/general data/predictions/*/
	rm -rf models/weights/*/ models/checkpoints reports/validation reports/training/*/ reports/general/validation reports/general/*.json reports/metrics reports/*.json reports/comparison.* reports/summary.txt

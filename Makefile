# `make` prints what there is. Every target but help and clean first makes sure that .venv is installed.
PY := .venv/bin/python
STAMP := .venv/.installed
SHARDS := runs/data/clock/index.json
SAMPLES := 50000

ifneq ($(filter-out 0,$(FRESH)),)
DEMO_FLAGS := --fresh
endif

# A build of torch named on the command line (make install TORCH=cuda) is looked at even if .venv is up to date.
ifdef TORCH
export TORCH
FORCE_INSTALL := force
endif
ifdef PYTHON
export PYTHON
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo data teacher map test test-slow test-cluster check certify bench bench-data bench-tilt bench-distill bench-checkerboard bench-clock bench-digits bench-toys bench-questions bench-map-quality bench-memory bench-scale clean force

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv with pinned versions (TORCH=cpu or TORCH=cuda chooses the build of torch, PYTHON= the interpreter)

$(STAMP): pyproject.toml constraints.txt .ci/install $(FORCE_INSTALL)
	@bash .ci/install

demo: $(STAMP) ## distil, export, evaluate and tilt the clock; report in runs/demo/ (FRESH=1 starts over)
	@$(PY) -m train demo --out runs/demo $(DEMO_FLAGS)

data: $(SHARDS) ## write the clock's training shards to runs/data/clock (SAMPLES=50000)

$(SHARDS): | $(STAMP)
	$(PY) -m data write clock --out runs/data/clock --num-samples $(SAMPLES)

teacher: $(STAMP) ## train the clock's velocity model and ship it in fmtt/assets/clock-teacher (half an hour)
	$(PY) -m train pretrain configs/clock/teacher.yaml
	$(PY) -m train export runs/clock-teacher fmtt/assets/clock-teacher
	$(PY) -m train.demo.measure fmtt/assets/clock-teacher

map: $(STAMP) ## distil the teacher and ship the flow map in fmtt/assets/clock-map (four hours; needs g++)
	$(PY) -m train distill configs/clock/map.yaml
	$(PY) -m train export runs/clock-map runs/clock-map-export
	$(PY) -m train distill configs/clock/map_anchored.yaml
	$(PY) -m train export runs/clock-map-anchored runs/clock-map-anchored-export
	$(PY) -m train distill configs/clock/map_refined.yaml
	$(PY) -m train export runs/clock-map-refined fmtt/assets/clock-map --half --half-life 500
	$(PY) -m train.demo.measure fmtt/assets/clock-map

test: $(STAMP) ## fast tests
	@$(PY) -m pytest

test-slow: $(STAMP) ## the tests that take minutes
	@$(PY) -m pytest -m "slow and not gpu and not cluster"

test-cluster: $(STAMP) ## submit the scripts of slurm/ to a SLURM started here (root; Debian's packages; PART= one file)
	@$(PY) -m pytest -m cluster $(or $(PART),tests/cluster)

check: $(STAMP) ## lint, formatting, types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright --pythonpath $(PY)

certify: $(STAMP) ## check every look-ahead and weight rule against closed forms; prints the table
	@$(PY) -m fmtt certify --matrix-only

bench: $(STAMP) ## time network passes, sampling and tilting on this machine; runs/bench/summary.json
	@$(PY) tests/benchmarks/passes.py --out runs/bench

bench-data: $(STAMP) ## time reading shards beside plain webdataset and a raw tar; runs/bench-data/summary.json
	@$(PY) -m tests.benchmarks.reading --out runs/bench-data

bench-tilt: $(STAMP) ## fmtt's own share of a tilt's time and memory; runs/bench-tilt/summary.json
	@$(PY) -m tests.benchmarks.tilt --out runs/bench-tilt

bench-distill: $(STAMP) ## cost of a training step of every objective; runs/bench-distill/summary.json
	@$(PY) -m tests.benchmarks.distill --out runs/bench-distill

bench-checkerboard: $(STAMP) ## self-distillation on the checkerboard, an hour and a half; continues where it stopped
	@$(PY) -m tests.benchmarks.checkerboard --out runs/bench-checkerboard

bench-clock: $(STAMP) ## every objective on the clock at equal processor time, 25 minutes; continues where it stopped
	@$(PY) -m tests.benchmarks.clock_objectives --out runs/bench-clock

bench-digits: $(STAMP) ## tilt a model of handwritten digits by every look-ahead; runs/digits/summary.json
	@$(PY) -m tests.benchmarks.digits --out runs/digits

bench-memory: $(STAMP) ## count what distilling each text-to-image family needs of a GPU's memory
	@$(PY) -m tests.benchmarks.memory --out runs/bench-memory

bench-toys: $(STAMP) ## the authors' two toy settings beside the published rows and the truth; runs/bench-toys/tables.txt
	@$(PY) -m tests.benchmarks.toys --out runs/bench-toys

bench-questions: $(STAMP) ## sharper rewards, more constraints, ESS foretold from the length, on the clock; half an hour
	@$(PY) -m tests.benchmarks.questions --out runs/questions

bench-map-quality: $(STAMP) ## every method with maps stopped at 10, 30 and 100 percent of training; a quarter of an hour
	@$(PY) -m tests.benchmarks.map_quality --out runs/map-quality

bench-scale: $(STAMP) ## two processes beside one, and the order of 64 ranks; runs/bench-scale/summary.json
	@$(PY) -m tests.benchmarks.scale --out runs/bench-scale

clean: ## remove caches and build products (runs/ and .venv stay; remove those by hand)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -not -path './runs/*' -prune -exec rm -rf {} +

force:

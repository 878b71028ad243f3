# What a change runs through: `make test` for every edit, `make style types` before a commit, `make all` before a release.
# `make nightly` is the long lane.
python = .venv/bin/python

.PHONY: test style types all nightly

# The fast lane: minutes on two cores. It leaves out the markers named here, and prints how many tests that are.
test:
	$(python) -m pytest -n auto -m "not (cluster or docs or faults or reproduction or browser or slow)"

style:
	$(python) -m ruff check .
	$(python) -m ruff format --check .

types:
	$(python) -m mypy

# The README's test command and all that stands in .ci/run.
all:
	.ci/run

# The long lane: 2,000 kills, every system call of a build, millions of mutations, large zoos. Hours on two cores.
# Each test prints its figures and its ZOOTOOLS_FAULT_SEED, which repeats it. ZOOTOOLS_NIGHTLY=0.1 makes a tenth of it.
nightly:
	ZOOTOOLS_NIGHTLY=$${ZOOTOOLS_NIGHTLY:-1} $(python) -m pytest -s -o timeout=0 \
	  tests/faults tests/build/test_determinism.py tests/hub/test_hub_publish.py tests/cluster/test_ray.py
	$(python) benchmarks/verify.py

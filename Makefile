# The long lane: 2,000 kills, every system call of a build, millions of mutations, large zoos. Hours on two cores.
# Each test prints its figures and its ZOOTOOLS_FAULT_SEED, which repeats it. ZOOTOOLS_NIGHTLY=0.1 makes a tenth of it.
.PHONY: nightly
nightly:
	ZOOTOOLS_NIGHTLY=$${ZOOTOOLS_NIGHTLY:-1} .venv/bin/python -m pytest -s -o timeout=0 tests/faults tests/build/test_determinism.py
	.venv/bin/python benchmarks/verify.py

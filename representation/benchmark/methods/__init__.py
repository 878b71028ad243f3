"""The methods of the benchmark: one module for each, and a row in `representation.benchmark.methods.table`."""

"""Evaluation of representations: linear probes, baselines, scores and tables of results."""

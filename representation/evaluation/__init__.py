"""What a representation tells about a model: targets, probes, baselines, scores and tables of results."""

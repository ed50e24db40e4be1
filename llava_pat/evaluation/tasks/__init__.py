"""The benchmarks, one file each; llava_pat.evaluation.benchmark.registry finds them."""

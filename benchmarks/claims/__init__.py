"""What the project claims for GPUs, part by part: `benchmarks/gpu.py` tests them."""

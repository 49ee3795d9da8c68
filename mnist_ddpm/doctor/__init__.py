"""Examines anybody's diffusion code: exact denoisers take the network's place, and bugs show."""

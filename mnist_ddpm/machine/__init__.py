"""What runs depend on: devices, files, locks, signals, streams, threads, processes, the shell."""

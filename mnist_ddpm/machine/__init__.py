"""The machine that work runs on: files, locks, signals, threads, processes, text."""

"""Damaged files, random commands, signals, kills, full disks: what comes of them."""

"""Faults that harm nothing: signals, kills, full disks, closed streams and odd surroundings."""

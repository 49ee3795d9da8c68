"""Watching a training: what is measured, recorded, found and drawn while it goes on."""

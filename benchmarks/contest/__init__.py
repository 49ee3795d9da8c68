"""This project and its peers: contestants, their processes, what is measured, races."""

"""The robust trainer: recipes, runs that stop and go on, several processes, plans."""

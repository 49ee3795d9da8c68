"""Commands and files that nobody should be harmed by."""

"""How good images are, whether they are copies, and how they are drawn for that."""

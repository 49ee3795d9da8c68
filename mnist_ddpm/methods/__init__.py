"""Methods beyond the paper's, one module a method."""

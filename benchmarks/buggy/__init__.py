"""Every bug in every codebase where it fits, for the proof of the doctor."""

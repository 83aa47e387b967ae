"""The verbs, end to end: each joins data, encoder and task, and leaves files in a run folder."""

"""Where labelled text comes from, and how it becomes rows: files, data frames, hub datasets, tasks."""

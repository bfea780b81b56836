"""Where two backends part, and why."""

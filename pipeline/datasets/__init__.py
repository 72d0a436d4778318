"""One module per source of clips."""

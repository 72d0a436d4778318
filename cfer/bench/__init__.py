"""Speed, measured beside what people use today: `python -m cfer.bench --help`."""

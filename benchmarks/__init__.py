"""Speed, measured beside what people use today: `cfer bench --help`."""

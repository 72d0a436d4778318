"""From videos to Parquet shards. Imports `cfer`; `cfer` never imports this package."""

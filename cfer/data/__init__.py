"""Shards on a disk or an object store, and what a network sees of a clip in them."""

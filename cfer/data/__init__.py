"""Shards on a disk or an object store, and what a network sees of a clip in them."""

# What makes a folder a data set; here, since to ask for it needs no pyarrow.
DESCRIPTION_NAME = "dataset.json"

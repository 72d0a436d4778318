"""`python -m cfer.train`: the same as `cfer train`."""

from cfer.errors import exit_with_message
from cfer.train.command import main

exit_with_message(main)

"""`python -m cfer.train`: the same as `cfer train`."""

from cfer.errors import end_quietly_while_importing, exit_with_message

end_quietly_while_importing()

from cfer.train.command import main  # noqa: E402  # PyTorch and Ray take seconds

exit_with_message(main)

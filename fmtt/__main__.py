"""``fmtt info | rewards | sample | tilt | search | evaluate | certify | compare | prompts | edit``.

Exit status: 0 done; 2 what the user gave is wrong (one line on stderr); 130 after Ctrl-C; 141 where the
reader of the output closed it, as ``head`` does; 1 anything else.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import warnings
from collections.abc import Sequence

from fmtt.cli.parser import build_parser
from fmtt.errors import UserError
from fmtt.steering.ranks import RankError


def _say(kind: str, message: object) -> None:
    print(f"{kind}: {' '.join(str(message).split())}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _say("warning", message)


def _reader_left() -> bool:
    """Whether nobody reads the standard output any more; what was left to write then goes nowhere."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError):  # closed from the start, or no file
        return False
    output = select.poll()
    output.register(descriptor, select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)  # or the interpreter complains on its way out
    os.close(nowhere)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            try:
                args = build_parser().parse_args(argv)
                args.run(args)
            finally:  # also after --help
                print(end="", flush=True)
        except UserError as error:
            _say("error", error)
            return 2
        except RankError as error:
            _say("error", error)
            return 1
        except BrokenPipeError:
            if not _reader_left():
                raise
            return 128 + signal.SIGPIPE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``fmtt info | rewards | sample | tilt | search | evaluate | certify | compare | prompts | edit``.

Exit status: 0 done; 2 what the user gave is wrong (one line on stderr); 1 anything else.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from fmtt.cli.parser import build_parser
from fmtt.errors import UserError
from fmtt.steering.ranks import RankError


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"fmtt: warning: {_one_line(message)}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            args = build_parser().parse_args(argv)
            args.run(args)
        except UserError as error:
            print(f"fmtt: error: {_one_line(error)}", file=sys.stderr)
            return 2
        except RankError as error:
            print(f"fmtt: error: {_one_line(error)}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("fmtt: interrupted", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

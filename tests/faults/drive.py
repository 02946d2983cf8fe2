"""A driver that can be killed: drive.py STUDY.yaml ROOT TRAINER [ADDRESS].

Exit status as that of the command: 0 done, 1 ended early or failed, 2 refused; 3 for what no user is to see.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from search import engine
from search.study import load
from spaces.errors import HeadwayError, UserError


def main() -> int:
    """Runs the study."""
    address = sys.argv[4] if len(sys.argv) > 4 else None
    try:
        outcome = engine.run(load(Path(sys.argv[1])), Path(sys.argv[2]), trainer=sys.argv[3], address=address)
    except UserError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    except HeadwayError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    except Exception:
        traceback.print_exc()
        return 3
    return 0 if outcome.finished else 1


if __name__ == "__main__":
    sys.exit(main())

"""Makes the store beside this file: round 1 is done, round 2 waits for half of its answers.

It was run with the version that wrote schema 0005, and is kept to say what the store holds. Run it
in a copy of this folder, with the version whose store you want:

    PYTHONPATH=.:tests/support python tests/data/store_0005/make.py FOLDER
"""

import sys
from pathlib import Path

from kept_store import answer_all, kept_campaign

from loop.round import run_round

ctx = kept_campaign(Path(sys.argv[1]))
run_round(ctx)
answer_all(ctx)
assert run_round(ctx).stage == "done"
run_round(ctx)
answer_all(ctx, 0.5)
assert run_round(ctx).stage == "pull"
ctx.store.close()

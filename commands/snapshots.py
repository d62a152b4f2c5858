"""`snapshots`: the group of commands on the snapshot directory and on one snapshot."""

from .snapshots_copy import copy  # noqa: TID251 - a neighbour
from .snapshots_diff import diff  # noqa: TID251 - a neighbour
from .snapshots_extract import extract  # noqa: TID251 - a neighbour
from .snapshots_list import list_snapshots  # noqa: TID251 - a neighbour
from .snapshots_prune import prune  # noqa: TID251 - a neighbour
from .snapshots_show import show  # noqa: TID251 - a neighbour
from .snapshots_undelete import undelete  # noqa: TID251 - a neighbour
from .snapshots_verify import verify  # noqa: TID251 - a neighbour

COMMANDS = (list_snapshots, show, verify, extract, diff, copy, prune, undelete)

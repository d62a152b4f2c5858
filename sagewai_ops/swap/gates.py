"""What must hold before a home is touched."""

from sagewai_ops.database.sqlite.in_use import holders
from sagewai_ops.errors import TargetBusyError
from sagewai_ops.home.paths import DATABASE, Home
from sagewai_ops.process.procfs import describe


def refuse_holders(target: Home) -> None:
    """Make sure that no process has the home's database open.

    Raises:
        TargetBusyError: One has; the message names it.
    """
    users = holders(target.root / DATABASE)
    if users:
        names = ", ".join(describe(user) for user in users)
        raise TargetBusyError(
            f"database {target.root / DATABASE}: in use by {names}",
            hint="stop it, then run this again",
        )

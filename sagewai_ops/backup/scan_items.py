"""What a snapshot contains, as a scan of the home found it, in little memory."""

from collections.abc import Iterator

from sagewai_ops.home.paths import Kind
from sagewai_ops.records import dataclass

_BLOCK_FILES = 1024  # packed at once


@dataclass(frozen=True, slots=True)
class ScanItem:
    """A file, directory or link that the snapshot contains.

    Attributes:
        path: In the archive.
        base: What `source` has before `path`, with a `/` at its end, or the whole of it.
        target: Of a link, as the archive has it.
        is_absolute: Whether the link was written with the home's own path before that.
        is_outside: Whether the link leads out of the home.
    """

    path: str
    base: str
    type: str  # "file", "folder", "link", "database"
    kind: Kind
    target: str = ""
    is_absolute: bool = False
    is_outside: bool = False

    @property
    def source(self) -> str:
        """The path that is read."""
        return self.base + self.path if self.base.endswith("/") else self.base


class ScanItems:
    """Items in the order of the archive; most are plain files, of which only the paths are kept.

    A hundred thousand files take 6 MB, as objects 20 MB.
    """

    def __init__(self) -> None:
        # A packed block of files of one kind and base, or an item of another type.
        self._blocks: list[tuple[str, Kind, bytes] | ScanItem] = []
        self._files: list[str] = []  # the last block, not packed yet
        self._base, self._kind = "", Kind.OTHER

    def append(self, item: ScanItem) -> None:
        """Add an item at the end."""
        if item.type != "file" or not item.base.endswith("/"):
            self._pack()
            self._blocks.append(item)
            return
        is_full = len(self._files) == _BLOCK_FILES
        if is_full or item.base != self._base or item.kind is not self._kind:
            self._pack()
            self._base, self._kind = item.base, item.kind
        self._files.append(item.path)

    def __iter__(self) -> Iterator[ScanItem]:
        """Yield all items, unpacked again at each iteration."""
        self._pack()
        for block in self._blocks:
            if isinstance(block, ScanItem):
                yield block
            else:
                base, kind, paths = block
                for path in paths.decode("utf-8", "surrogatepass").split("\0"):
                    yield ScanItem(path, base, "file", kind)

    def not_plain(self) -> Iterator[ScanItem]:
        """Yield the items that are not packed, among them directories, links and databases."""
        return (block for block in self._blocks if isinstance(block, ScanItem))

    def replace(self, item: ScanItem, other: ScanItem) -> None:
        """Replace an item that is not packed."""
        self._blocks[self._blocks.index(item)] = other

    def clear(self) -> None:
        """Remove all items."""
        self._blocks.clear()
        self._files.clear()

    def _pack(self) -> None:
        if self._files:
            paths = "\0".join(self._files).encode("utf-8", "surrogatepass")
            self._blocks.append((self._base, self._kind, paths))
            self._files.clear()

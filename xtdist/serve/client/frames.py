"""Server-sent events from bytes, however the network has cut them."""

from __future__ import annotations

_MOST_BYTES = 2**24


class Frames:
    """Feed it bytes, get the data of the events that are complete. Splits at line ends only: other
    characters that Python calls a line end may stand inside of JSON."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[str]:
        """Data of the events that ``chunk`` has completed.

        Raises:
            ValueError: an event without end, or one that is not UTF-8.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line:
                name, _, value = line.partition(b":")
                if name == b"data":
                    self._data.append(value.removeprefix(b" "))
            elif self._data:
                events.append(b"\n".join(self._data).decode())
                self._data = []
        if len(self._rest) + sum(map(len, self._data)) > _MOST_BYTES:
            raise ValueError(f"an event of more than {_MOST_BYTES} bytes")
        return events

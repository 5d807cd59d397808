"""Account layouts, declared once as dataclasses, read and written as bytes.

A layout is a frozen dataclass whose fields are annotated with the wire types below, in wire order:

    @dataclass(frozen=True, slots=True)
    class Mint:
        supply: u64
        decimals: u8
        reserved: Annotated[bytes, raw(3)] = bytes(3)

Everything is little-endian and packed; a pubkey is 32 raw bytes. Reading compiles to one
`struct.unpack_from`, so that a pool costs a few microseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from solders.pubkey import Pubkey


class WireError(ValueError):
    """Bytes that are not what their layout says: too short, or of another kind."""


@dataclass(frozen=True, slots=True)
class WireType:
    """How one field is packed: its `struct` code, and how to go from there to Python and back."""

    code: str
    load: Callable[[Any], Any] | None = None
    dump: Callable[[Any], Any] | None = None


def _u128_load(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _u128_dump(value: int) -> bytes:
    return value.to_bytes(16, "little")


u8 = Annotated[int, WireType("B")]
u16 = Annotated[int, WireType("H")]
u32 = Annotated[int, WireType("I")]
i32 = Annotated[int, WireType("i")]
u64 = Annotated[int, WireType("Q")]
i64 = Annotated[int, WireType("q")]
u128 = Annotated[int, WireType("16s", _u128_load, _u128_dump)]
boolean = Annotated[bool, WireType("?")]
pubkey = Annotated[Pubkey, WireType("32s", Pubkey.from_bytes, bytes)]


def raw(size: int) -> WireType:
    """Return the type of `size` bytes that this engine carries without reading them."""
    return WireType(f"{size}s")


def account_discriminator(struct_name: str) -> bytes:
    """Return the first 8 bytes of an Anchor account: sha256("account:" + name)."""
    return sha256(f"account:{struct_name}".encode()).digest()[:8]


def instruction_discriminator(name: str) -> bytes:
    """Return the first 8 bytes of an Anchor instruction's data: sha256("global:" + name)."""
    return sha256(f"global:{name}".encode()).digest()[:8]


Struct = TypeVar("Struct")


class Layout(Generic[Struct]):
    """Reads, writes and patches accounts of one kind."""

    def __init__(self, kind: type[Struct], *, discriminator: bytes = b"", size: int | None = None) -> None:
        """`kind` is a dataclass of wire types; `size` is the account's, where zeros follow the last field."""
        self.kind = kind
        self.discriminator = discriminator
        self._types: dict[str, WireType] = {}
        self._structs: dict[str, struct.Struct] = {}
        self._offsets: dict[str, int] = {}
        hints = get_type_hints(kind, include_extras=True)
        offset = len(discriminator)
        for field in fields(kind):  # type: ignore[arg-type]
            wire_type = _wire_type(kind, field.name, hints[field.name])
            packed = struct.Struct("<" + wire_type.code)
            self._types[field.name] = wire_type
            self._structs[field.name] = packed
            self._offsets[field.name] = offset
            offset += packed.size
        self._struct = struct.Struct("<" + "".join(wire_type.code for wire_type in self._types.values()))
        self._writes = {
            name: (packed.pack_into, self._offsets[name], self._types[name].dump)
            for name, packed in self._structs.items()
        }
        """What to pack a field with, where to, and what it becomes before."""
        self._loads = [
            (index, wire_type.load)
            for index, wire_type in enumerate(self._types.values())
            if wire_type.load is not None
        ]
        self.size: int = offset if size is None else size
        """Of the account, in bytes, discriminator and trailing padding included."""

    def matches(self, data: bytes | bytearray) -> bool:
        """Say whether these bytes are an account of this kind."""
        return len(data) >= self.size and data[: len(self.discriminator)] == self.discriminator

    def decode(self, data: bytes | bytearray) -> Struct:
        """Return the account's fields. Raises WireError for bytes of another kind."""
        if not self.matches(data):
            raise WireError(f"{len(data)} bytes that are not a {self.kind.__name__} ({self.size} bytes)")
        values = list(self._struct.unpack_from(data, len(self.discriminator)))
        for index, load in self._loads:
            values[index] = load(values[index])
        return self.kind(*values)

    def encode(self, value: Struct) -> bytes:
        """Return the account's bytes; padding is zero."""
        out = bytearray(self.size)
        out[: len(self.discriminator)] = self.discriminator
        for name, (pack_into, offset, dump) in self._writes.items():
            field = getattr(value, name)
            pack_into(out, offset, field if dump is None else dump(field))
        return bytes(out)

    def patch(self, data: bytes | bytearray, **changes: Any) -> bytes:
        """Return the bytes with these fields changed and everything else, padding too, as it was.

        Raises WireError for bytes of another kind.
        """
        if not self.matches(data):
            raise WireError(f"{len(data)} bytes that are not a {self.kind.__name__} ({self.size} bytes)")
        out = bytearray(data)
        for name, value in changes.items():
            pack_into, offset, dump = self._writes[name]
            pack_into(out, offset, value if dump is None else dump(value))
        return bytes(out)

    def offset(self, name: str) -> int:
        """Return where a field starts, in bytes from the account's first: for memcmp filters and slices."""
        return self._offsets[name]

    def reader(self, *names: str) -> Callable[[bytes], tuple[Any, ...]]:
        """Return a function that reads only these fields, which must be named in wire order.

        It checks neither size nor discriminator: for accounts that were decoded once already.
        """
        code, at, loads = "<", self._offsets[names[0]], []
        start = at
        for index, name in enumerate(names):
            if self._offsets[name] < at:
                raise ValueError(f"{name} comes before its neighbour in {self.kind.__name__}")
            code += f"{self._offsets[name] - at}x{self._types[name].code}"
            at = self._offsets[name] + self._structs[name].size
            load = self._types[name].load
            if load is not None:
                loads.append((index, load))
        unpack_from = struct.Struct(code).unpack_from
        if not loads:
            return lambda data: unpack_from(data, start)

        def read(data: bytes) -> tuple[Any, ...]:
            values = list(unpack_from(data, start))
            for index, load in loads:
                values[index] = load(values[index])
            return tuple(values)

        return read


def _wire_type(kind: type, name: str, hint: Any) -> WireType:
    if get_origin(hint) is Annotated:
        for extra in get_args(hint)[1:]:
            if isinstance(extra, WireType):
                return extra
    raise TypeError(f"{kind.__name__}.{name} is not annotated with a wire type")

"""What an Arrow IPC stream says of itself, read before any of its data is: compressed bodies are refused.

A few kilobytes of a compressed body can expand to more memory than there is, and Arrow allocates what the body states.
The metadata is a flatbuffer, of which four entries are looked at here, every offset checked.
Source: Arrow's Message.fbs, and the layout of flatbuffers' tables.
"""

from __future__ import annotations

import struct

from scaletot_jax.serving.failures import RequestError

_CONTINUATION = 0xFFFFFFFF
_DICTIONARY, _RECORDS = 2, 3  # values of MessageHeader
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3  # entries of Message
_DICTIONARY_DATA, _COMPRESSION = 1, 3  # of DictionaryBatch, of RecordBatch


def check_stream(body: bytes) -> None:
    """RequestError, 400, where the body is not made of whole messages or one of them is compressed."""
    try:
        _walk(body)
    except (struct.error, IndexError, _Damaged) as error:
        raise RequestError(
            "the body is not an Arrow IPC stream",
            status=400,
            why=str(error) or "a message is cut short",
            do="write it with pyarrow.ipc.new_stream, uncompressed",
        ) from error


class _Damaged(Exception):
    pass


def _walk(body: bytes) -> None:
    position = messages = 0
    while position < len(body):
        (mark,) = struct.unpack_from("<I", body, position)
        if mark != _CONTINUATION:
            raise _Damaged("a message does not begin with the continuation mark")
        (size,) = struct.unpack_from("<i", body, position + 4)
        position += 8
        if size == 0:  # end of the stream
            break
        if size < 0 or position + size > len(body):
            raise _Damaged("a message is cut short")
        metadata = memoryview(body)[position : position + size]
        length = _check_message(metadata)
        if length < 0 or position + size + length > len(body):
            raise _Damaged("a message's data is cut short")
        position += size + length
        messages += 1
    if not messages:
        raise _Damaged("it holds no message")


def _check_message(data: memoryview) -> int:
    """Refuses compression; returns the length of the data behind."""
    (root,) = struct.unpack_from("<I", data, 0)
    place = _entry(data, root, _BODY_LENGTH)
    length = struct.unpack_from("<q", data, place)[0] if place else 0
    kind_at, header_at = _entry(data, root, _HEADER_TYPE), _entry(data, root, _HEADER)
    if not kind_at or not header_at:
        raise _Damaged("a message has no header")
    kind, header = data[kind_at], _target(data, header_at)
    if kind == _DICTIONARY:
        inner = _entry(data, header, _DICTIONARY_DATA)
        if inner:
            kind, header = _RECORDS, _target(data, inner)
    if kind == _RECORDS and _entry(data, header, _COMPRESSION):
        raise _Damaged("its buffers are compressed")
    return length


def _entry(data: memoryview, table: int, number: int) -> int:
    """Where entry ``number`` of a table lies; 0: absent."""
    if not 0 <= table <= len(data) - 4:
        raise _Damaged("an offset points outside of a message")
    (back,) = struct.unpack_from("<i", data, table)
    vtable = table - back
    if not 0 <= vtable <= len(data) - 4:
        raise _Damaged("an offset points outside of a message")
    (size,) = struct.unpack_from("<H", data, vtable)
    at = 4 + 2 * number
    if at + 2 > size:
        return 0
    (offset,) = struct.unpack_from("<H", data, vtable + at)
    return table + offset if offset else 0


def _target(data: memoryview, place: int) -> int:
    return place + struct.unpack_from("<I", data, place)[0]

"""Ways to damage files: any bytes, JSON with its structure kept, and headers of safetensors files.

Everything takes a `random.Random`, so that a seed gives the same file again.
"""

import json
import random
from collections.abc import Callable
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

# What JSON can say that Python's writer doesn't: put in as a text of its own, replaced after writing.
RAW = ["1" * 5000, "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1E400", "-0", "0.1e-400", "[" * 100_000,
       "[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, '{"a":1,"a":2}', "tru", '"\\ud800"', '"\\u0000"', "'x'",
       "[1,]", "1 2", ""]
NUMBERS = [0, 1, -1, 2, 3, 7, 8, 255, 256, 257, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**62, 2**63 - 1,
           2**63, 2**64 - 1, 2**64, -(2**63), 10**6, 10**9, 10**12, 10**18, 10**30, 0.5, -0.5, 1e-300, 1e300, 3.0]
TEXTS = ["", " ", "x", "\0", "a\0b", "\n", "a\nb", "\x1b[31mred", "\u202e", "\ud800", "é", "🙂", "../x",
         "../../etc/passwd", "/etc/passwd", "C:\\x", "~", ".", "..", "%s%n", "{0.__class__}", "{{ 1 }}",
         "<|endoftext|>",
         "a" * 300, "x" * 20_000, "gpt2", "true", "1", "-1", "NaN", "Ġthe", "ĠĠ" * 200, "F32", "__metadata__"]


def hostile(rng: random.Random) -> Any:
    """A value that nobody expects."""
    kind = rng.randrange(8)
    if kind == 0:
        return _raw(rng.randrange(len(RAW)))
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind in (3, 4):
        return rng.choice(TEXTS)
    if kind == 5:
        return rng.choice([None, True, False, [], {}, [[]], [{}], {"": ""}, [None], [1, "a", None]])
    if kind == 6:
        return [rng.choice(NUMBERS)] * rng.choice([1, 2, 9, 1000])
    return {rng.choice(TEXTS): rng.choice(NUMBERS) for _ in range(rng.choice([1, 3]))}


def _raw(number: int) -> str:
    return f"\ue000{number}\ue000"


def to_json(value: Any) -> bytes:
    """JSON, with what stands for RAW replaced; lone surrogates stay escapes."""
    text = json.dumps(value)
    if "\\ue000" in text:
        for number, raw in enumerate(RAW):
            text = text.replace(f'"\\ue000{number}\\ue000"', raw)
    return text.encode("utf-8", errors="surrogatepass")


def _places(value: Any, found: list, depth: int = 0) -> list:
    """(container, key) of all values within, of large containers only some."""
    if isinstance(value, dict | list) and depth < 20:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys[:40]:
            found.append((value, key))
            _places(value[key], found, depth + 1)
    return found


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A JSON value with one to four places changed; in place where it can."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        places = _places(value, [])
        if not places or rng.random() < 0.02:
            return hostile(rng)
        container, key = rng.choice(places)
        action = rng.randrange(8)
        if action < 4:
            container[key] = hostile(rng)
        elif action == 4:
            del container[key]
        elif action == 5:
            other, other_key = rng.choice(places)
            if other_key in other if isinstance(other, dict) else other_key < len(other):
                container[key] = json.loads(json.dumps(other[other_key]))
        elif action == 6 and isinstance(container, dict):
            container[rng.choice([*TEXTS, f"{key} ", str(key).upper(), f"{key}s"])] = container.pop(key)
        elif isinstance(container, dict):
            container[rng.choice(TEXTS)] = hostile(rng)
        else:
            container.insert(rng.randrange(len(container) + 1), hostile(rng))
    return value


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """JSON with its structure kept; now and then a key twice, or bytes damaged."""
    if rng.random() < 0.15:
        return mutate_bytes(content, rng)
    try:
        written = to_json(mutate_value(json.loads(content), rng))
    except (ValueError, RecursionError):  # the content was damaged before
        return mutate_bytes(content, rng)
    if rng.random() < 0.05 and written.startswith(b"{") and len(written) > 2:
        written = b"{" + to_json({rng.choice(TEXTS): hostile(rng)})[1:-1] + b"," + written[1:]
    return written


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, ends cut off, pieces moved, doubled, or replaced."""
    damaged = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        size, action = len(damaged), rng.randrange(8)
        at = rng.randrange(size + 1)
        if action == 0 and size:
            damaged[min(at, size - 1)] ^= 1 << rng.randrange(8)
        elif action == 1 and size:
            damaged[min(at, size - 1)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, 10, 34, 44, 91, 123])
        elif action == 2:
            del damaged[at:]
        elif action == 3:
            del damaged[at : at + rng.choice([1, 2, 8, 100])]
        elif action == 4:
            damaged[at:at] = damaged[(start := rng.randrange(size + 1)) : start + rng.choice([1, 4, 16, 200])]
        elif action == 5:
            damaged[at:at] = rng.randbytes(rng.choice([1, 2, 8, 64]))
        elif action == 6:
            number = rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 1 << 40])
            damaged[at : at + 8] = number.to_bytes(8, rng.choice(["little", "big"]))
        else:
            damaged[at:at] = rng.choice(TEXTS).encode("utf-8", errors="surrogatepass")
    return bytes(damaged)


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """Lines of JSON, each a value of its own."""
    lines = content.splitlines()
    for _ in range(rng.choice([1, 1, 3])):
        at = rng.randrange(len(lines))
        lines[at] = mutate_json(lines[at], rng)
    if rng.random() < 0.1:
        rng.shuffle(lines)
    return b"\n".join(lines) + (b"\n" if rng.random() < 0.9 else b"")


def mutate_text(content: bytes, rng: random.Random) -> bytes:
    """Lines of plain text or cells: left out, doubled, swapped, or with hostile texts in them."""
    if rng.random() < 0.4:
        return mutate_bytes(content, rng)
    lines = content.split(b"\n")
    for _ in range(rng.choice([1, 1, 3])):
        at, text = rng.randrange(max(1, len(lines))), rng.choice(TEXTS).encode("utf-8", errors="surrogatepass")
        lines = lines or [b""]
        lines[at : at + 1] = rng.choice([[], [lines[at]] * 2, [text], [lines[at] + text], [text + b" " + text],
                                         [lines[at], rng.choice(lines)], [lines[at].replace(b" ", b"")],
                                         [b",".join([lines[at]] * 3)], [b'"' + lines[at]]])
    return b"\n".join(lines)


DTYPES = ["F32", "F16", "BF16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "F4", "C64", "f32", "", "X\n"]


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header's entries changed, its length, the data behind it, or any bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(content, rng)
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(rng.choice([1, 1, 2, 4])):
        name = rng.choice([name for name in header if name != "__metadata__"] or ["x"])
        tensor, action = header.get(name), rng.randrange(10)
        if not isinstance(tensor, dict) or action == 0:
            mutate_value(header, rng)
        elif action == 1:
            tensor["dtype"] = rng.choice(DTYPES)
        elif action == 2:
            tensor["shape"] = [rng.choice(NUMBERS[:-8]) for _ in range(rng.choice([0, 1, 2, 3, 40]))]
        elif action == 3:
            tensor["shape"] = rng.choice([tensor["shape"][::-1], [*tensor["shape"], 1], [0, *tensor["shape"]],
                                          [0, 2**62], [2**32, 2**32], [2**40, 2**40, 0], []])
        elif action == 4:
            tensor["data_offsets"] = [rng.choice([*NUMBERS[:-8], 16, 64, len(data)]) for _ in range(2)]
        elif action == 5:
            header[rng.choice([*TEXTS, name + ".lora_A", "h.999999999999.ln_1.bias", name.replace("h.0", "h.1"),
                               ".".join("a" * 200), "module." + name])] = header.pop(name)
        elif action == 6:
            del header[name]
        elif action == 7:
            header["__metadata__"] = hostile(rng)
        elif action == 8:  # shapes and offsets that agree, so that only the model can object
            tensor["shape"], tensor["data_offsets"] = [0], [tensor["data_offsets"][0]] * 2
        else:
            data = rng.choice([data[: rng.randrange(len(data) + 1)], data + b"\0" * 8, b"", data[::-1]])
        if not isinstance(header, dict):
            break
    written = to_json(header)
    length = len(written)
    if rng.random() < 0.1:
        length = rng.choice([0, 1, length - 1, length + 1, 2**63, 2**27])
    return length.to_bytes(8, "little") + written + data

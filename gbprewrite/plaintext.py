"""Names from files as text that is only read: no control of a terminal, a page or a picture."""

JOINERS = "\u200c\u200d"  # zero-width, but parts of Persian, Hindi and emoji
SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def plain(text: object) -> str:
    r"""The text in one line, with `\x1b` for what does not print: control characters, line ends, bidirectional
    controls, and bytes of file names that are not UTF-8 (as `\xff`). Doing it twice changes nothing."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in JOINERS else _spelled(c) for c in text)


def cut(text: str, length: int) -> str:
    """Without the middle where it is too long: the ends of names tell most."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def _spelled(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is no UTF-8
        code -= 0xDC00
    if letter in SHORT:
        return SHORT[letter]
    if letter.isspace() and code > 0xFF and letter not in "\u2028\u2029":
        return letter  # the wide space of Chinese and Japanese, and its like
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

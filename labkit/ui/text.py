"""Untrusted text made safe to show: what a model or a reader wrote is never markup."""

import html
from collections.abc import Iterable

# Control characters become their pictures (ESC is shown as ␛); newline and tab stay. Characters that turn the writing
# direction, or that a terminal would obey, become their names; halves of surrogate pairs, which UTF-8 has no form for,
# the replacement character.
_NAMED = [*range(0x80, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF]
_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **{code: f"[U+{code:04X}]" for code in _NAMED},
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def safe_text(text: str, most: int = 4000) -> str:
    """`text` with everything visible and nothing obeyed, for plain text; cut after `most` characters, with a note."""
    shown = text[:most].translate(_VISIBLE)
    return shown if len(text) <= most else f"{shown} … ({len(text):,} characters, cut)"


def safe_html(text: str, most: int = 4000) -> str:
    """`safe_text` for HTML: tags, quotes and entities are escaped, between tags and within quoted attributes alike."""
    return html.escape(safe_text(text, most), quote=True)


def tokens_html(tokens: Iterable, most: int = 4000) -> str:
    """An answer's tokens (evaluate.stream.Token), the deeper shaded the less expected, alternatives on hover."""
    tokens, spans, shown = list(tokens), [], 0
    for token in tokens:
        shown += len(token.text)
        if shown > most:
            spans.append(f" … ({sum(len(token.text) for token in tokens):,} characters, cut)")
            break
        if token.id is None:  # the end of the stream
            spans.append(safe_html(token.text))
            continue
        lines = [f"{token.probability:.1%} this token; the likeliest:"]
        lines += [f"{share:.1%} {text!r}" for text, share in token.alternatives]
        colour = f"rgba(230,159,0,{0.6 * (1 - token.probability):.2f})"
        style = f"background:{colour};border-radius:2px;outline:1px solid rgba(128,128,128,0.25)"
        spans.append(
            f"<span title='{safe_html(chr(10).join(lines))}' style='{style}'>{safe_html(token.text or '▫')}</span>"
        )
    return "".join(spans)

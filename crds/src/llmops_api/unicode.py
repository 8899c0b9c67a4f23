"""Text that JSON can say and UTF-8 cannot."""


def half_character(text: str) -> str | None:
    """The first half of a surrogate pair that stands alone in `text`; None when there is none, and it can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None

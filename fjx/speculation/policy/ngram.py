"""Prompt lookup: what followed the last time that a text went on like this."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST_KEY = 4
_LONGEST_MATCH = 32
_CANDIDATES = 3
"""Earlier places that are compared, the latest ones."""
_TOKEN_BITS = 32
_HALF = 3.0
"""Matched tokens with which a proposal is as likely right as wrong."""
_FADING = 0.98
"""Confidence in a token relative to the one before it."""


class SuffixIndex:
    """Where the n-grams of one request's growing list of tokens stood, to propose what follows.

    (Saxena 2023, "Prompt lookup decoding".) Appending a token takes constant time.
    """

    def __init__(self, min_match: int = 2) -> None:
        """Start with no tokens.

        Args:
            min_match: Tokens that must have stood in the same order before, 1 to 4.

        Raises:
            ValueError: it is out of that range.
        """
        if not 1 <= min_match <= _LONGEST_KEY:
            raise ValueError(f"min_match must be 1 to {_LONGEST_KEY}, got {min_match}")
        self._sizes = range(_LONGEST_KEY, min_match - 1, -1)
        self._masks = {size: (1 << size * _TOKEN_BITS) - 1 for size in self._sizes}
        self._tokens: list[int] = []
        self._suffix = 0
        self._latest: dict[int, dict[int, int]] = {size: {} for size in self._sizes}
        """By n-gram, the position behind its latest occurrence that has a token behind it."""
        self._earlier: dict[int, list[int]] = {size: [] for size in self._sizes}
        """By such a position, the one before it of the same n-gram; -1: none."""

    def __len__(self) -> int:
        """How many tokens it holds."""
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            end = len(self._tokens)
            for size in self._sizes:
                earlier = -1
                if end >= size:
                    latest, key = self._latest[size], self._suffix & self._masks[size]
                    earlier = latest.get(key, -1)
                    latest[key] = end
                self._earlier[size].append(earlier)
            self._tokens.append(token)
            self._suffix = (self._suffix << _TOKEN_BITS | token) & self._masks[_LONGEST_KEY]

    def propose(self, most: int) -> tuple[list[int], list[float]]:
        """What followed the longest match of the text's end; of equals, the latest one.

        Where the match runs into the end of the text, it goes on with what it proposed.

        Args:
            most: Most tokens.

        Returns:
            The tokens and how sure each is, 0 to 1, given that those before it are right. It rises
            with the matched length, and falls where the latest matches went on differently. Both
            are empty where nothing matches.
        """
        places = self._places()
        if not places or most <= 0:
            return [], []
        length, start = max((self._match(place), place) for place in places)
        known = self._tokens
        proposed: list[int] = []
        for i in range(start, start + most):
            proposed.append(known[i] if i < len(known) else proposed[i - len(known)])
        agreeing = sum(known[place] == known[start] for place in places) / len(places)
        sure = length / (length + _HALF) * (1 + agreeing) / 2
        return proposed, [sure * _FADING**i for i in range(most)]

    def _places(self) -> list[int]:
        """Positions behind the latest earlier occurrences of the longest n-gram that has any."""
        for size in self._sizes:
            place = -1
            if len(self._tokens) >= size:
                place = self._latest[size].get(self._suffix & self._masks[size], -1)
            places: list[int] = []
            while place >= 0 and len(places) < _CANDIDATES:
                places.append(place)
                place = self._earlier[size][place]
            if places:
                return places
        return []

    def _match(self, place: int) -> int:
        """How many tokens before a position equal the text's last ones."""
        known, length = self._tokens, 0
        while (
            length < min(place, _LONGEST_MATCH) and known[place - 1 - length] == known[-1 - length]
        ):
            length += 1
        return length

"""Equal parts of a number of things: which of them each of several processes takes."""


def starts(count: int, parts: int) -> list[int]:
    """Where each of ``parts`` begins, and where the last one ends.

    Sizes differ by one at most, the larger ones first, as ``torch.tensor_split`` and ``numpy.array_split`` cut.
    """
    size, larger = divmod(count, parts)
    return [part * size + min(part, larger) for part in range(parts + 1)]


def part_of(count: int, part: int, parts: int) -> slice:
    """The part of that number, from 0 on."""
    bounds = starts(count, parts)
    return slice(bounds[part], bounds[part + 1])

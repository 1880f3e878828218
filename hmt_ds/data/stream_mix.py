"""Several streamed data sources read as one (a mix): each part of the mix consists of a part of every source."""

from collections.abc import Collection, Sequence

import numpy as np
from datasets import Dataset, concatenate_datasets

from hmt_ds.data.errors import NoDocumentsError
from hmt_ds.data.stream import Stream

APART = 2**40  # between the first documents of two sources, in the indices of documents


class StreamMix:
    """Reads several streamed data sources side by side, each in parts of its own size; a source that has ended begins
    again.

    Part n of the mix has part n of every source, or what is there when the source is repeated. So it depends only on
    its number, like the part of a stream, and each pass over a source reads all of it.

    Args:
        streams: The streams, whose sizes of parts are in the ratio of their weights.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = streams

    def documents(self, number: int) -> tuple[Dataset, np.ndarray]:
        """Return the tokens of one part of the mix of sources, and the indices of its documents.

        Args:
            number: Number of the part, from 0; there is no last one.

        Raises:
            DataError: A source cannot be read, or a document does not have the expected format.
            NoDocumentsError: All documents of the part are left out.
        """
        found, indices, empty = list[Dataset](), list[np.ndarray](), list[NoDocumentsError]()
        for source, stream in enumerate(self._streams):
            stream.ends_before(number)  # now its number of parts is known, if it has to be
            try:
                part = stream.documents(around(stream, number))
            except NoDocumentsError as error:  # of this source; there are others
                empty.append(error)
                continue
            assert part is not None
            found.append(part[0])
            indices.append(source * APART + part[1])
        if not found:
            raise empty[0]
        return concatenate_datasets(found), np.concatenate(indices)

    def keep(self, numbers: Collection[int]) -> None:
        """Delete all parts of the sources except those that make up the given parts of the mix.

        Args:
            numbers: Numbers of the parts of the mix.
        """
        for stream in self._streams:
            stream.keep({around(stream, number) for number in numbers})


def around(stream: Stream, number: int) -> int:
    """Return the number of the part of one stream that belongs to a part of a mix; after its end the stream begins
    again.

    Args:
        stream: The stream.
        number: Number of the part of the mix.
    """
    return number if stream.count is None else number % stream.count


def part_sizes(rows: int, weights: Sequence[float]) -> list[int]:
    """Return how many rows of each source are in one part of a mix of streamed sources.

    Args:
        rows: Rows of a part of the mix.
        weights: Weights of the sources, above 0.
    """
    return [round(rows * weight / sum(weights)) for weight in weights]

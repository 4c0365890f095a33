import torch

from partita.metrics.retrieval import EmbeddedPairs, recall


def ranked(queries, candidates, number, keys):
    """The recall of a full sort, without ties."""
    found = 0
    for query, key in zip(queries, keys, strict=True):
        order = sorted(range(len(candidates)), key=lambda j: -float(query @ candidates[j]))
        rest = []
        for j in order:  # of candidates with the query's key, only the first has a place of its own
            if keys[j] != key or not any(keys[k] == key for k in rest):
                rest.append(j)
        found += any(keys[j] == key for j in rest[:number])
    return found / len(queries)


def test_recall_is_that_of_a_full_sort():
    draw = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(2, 30, 6, generator=draw)
    candidates += 0.5 * queries
    for keys in (list(range(30)), [i // 2 for i in range(30)]):
        for number in (1, 3, 10, 30):
            expected = ranked(queries, candidates, number, keys)
            assert recall(queries, candidates, number, torch.tensor(keys)).item() == torch.tensor(expected).item()
    assert recall(queries, candidates, 3) == recall(queries, candidates, 3, torch.arange(30))


def test_embeddings_that_are_all_the_same_find_nothing():
    same = torch.ones(20, 4)
    assert recall(same, same, 10) == 0
    assert recall(same, same, 20) == 1
    assert recall(same, same, 1, torch.zeros(20)) == 1  # if all belong together, anything is right


def test_pairs_are_collected_over_batches():
    pairs = EmbeddedPairs()
    draw = torch.Generator().manual_seed(0)
    first, second, keys = torch.randn(7, 3, generator=draw), torch.randn(7, 3, generator=draw), torch.arange(7)
    for rows in (slice(0, 1), slice(1, 7)):  # also a single pair has its axis
        pairs.update(first[rows], second[rows], keys[rows])
        expected = (first[: rows.stop], second[: rows.stop], keys[: rows.stop])
        assert all(torch.equal(a, b) for a, b in zip(pairs.collected(), expected, strict=True))

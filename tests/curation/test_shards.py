"""A shard is whole or it is not: a change of any bit of it is noticed."""

import random

import pyarrow.parquet as pq
import pytest

from src.curation.shards import is_whole, write_shard
from tests.curation.score_tables import failed, pair


@pytest.mark.parametrize("count", [0, 3, 500])
def test_a_change_of_any_bit_is_noticed(tmp_path, count, caplog):
    chance = random.Random(0)
    path = tmp_path / "part-0000000000.parquet"
    rows = [failed(row) if row % 5 == 2 else pair(row, chance.random(), source=f"s{row % 3}") for row in range(count)]
    assert not is_whole(path)
    write_shard(path, [{"error": None, **row} for row in rows])
    assert pq.read_table(path).num_rows == count
    assert is_whole(path)
    assert not caplog.records
    content = path.read_bytes()
    for place in chance.sample(range(len(content)), 400):
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        assert not is_whole(path), place
    for length in (0, 3, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert not is_whole(path)
    assert "is damaged and will be scored again" in caplog.text
    path.write_bytes(content)
    assert is_whole(path)

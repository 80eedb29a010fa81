from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data", "raw", "cid")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    CID_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: _struct_pb2.ListValue
    raw: bytes
    cid: str
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[_Union[_struct_pb2.ListValue, _Mapping]] = ..., raw: _Optional[bytes] = ..., cid: _Optional[str] = ...) -> None: ...

class JobSpec(_message.Message):
    __slots__ = ("pattern", "config", "priority", "max_cost", "timeout", "retries", "client_data", "labels", "idempotency_key", "min_copies")
    class ClientDataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_DATA_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    MIN_COPIES_FIELD_NUMBER: _ClassVar[int]
    pattern: str
    config: _struct_pb2.Struct
    priority: str
    max_cost: float
    timeout: float
    retries: int
    client_data: _containers.MessageMap[str, Tensor]
    labels: _containers.ScalarMap[str, str]
    idempotency_key: str
    min_copies: int
    def __init__(self, pattern: _Optional[str] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., priority: _Optional[str] = ..., max_cost: _Optional[float] = ..., timeout: _Optional[float] = ..., retries: _Optional[int] = ..., client_data: _Optional[_Mapping[str, Tensor]] = ..., labels: _Optional[_Mapping[str, str]] = ..., idempotency_key: _Optional[str] = ..., min_copies: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "hint", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    hint: str
    details: _struct_pb2.Struct
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ..., details: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class TaskInfo(_message.Message):
    __slots__ = ("task_id", "node", "model_cid", "status", "attempt", "started", "ended", "receipt", "error", "receipt_cid")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_CID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_CID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    node: str
    model_cid: str
    status: str
    attempt: int
    started: float
    ended: float
    receipt: bytes
    error: Error
    receipt_cid: str
    def __init__(self, task_id: _Optional[str] = ..., node: _Optional[str] = ..., model_cid: _Optional[str] = ..., status: _Optional[str] = ..., attempt: _Optional[int] = ..., started: _Optional[float] = ..., ended: _Optional[float] = ..., receipt: _Optional[bytes] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., receipt_cid: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("job_id", "pattern", "status", "owner", "epoch", "submitted", "updated", "times", "error", "tasks", "priority", "labels", "spec_cid")
    class TimesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    UPDATED_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SPEC_CID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    pattern: str
    status: str
    owner: str
    epoch: int
    submitted: float
    updated: float
    times: _containers.ScalarMap[str, float]
    error: Error
    tasks: _containers.RepeatedCompositeFieldContainer[TaskInfo]
    priority: str
    labels: _containers.ScalarMap[str, str]
    spec_cid: str
    def __init__(self, job_id: _Optional[str] = ..., pattern: _Optional[str] = ..., status: _Optional[str] = ..., owner: _Optional[str] = ..., epoch: _Optional[int] = ..., submitted: _Optional[float] = ..., updated: _Optional[float] = ..., times: _Optional[_Mapping[str, float]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., tasks: _Optional[_Iterable[_Union[TaskInfo, _Mapping]]] = ..., priority: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., spec_cid: _Optional[str] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("job_id", "pattern", "status", "outputs", "details", "tasks", "cost", "result_cid")
    class OutputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    RESULT_CID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    pattern: str
    status: str
    outputs: _containers.MessageMap[str, Tensor]
    details: _struct_pb2.Struct
    tasks: _containers.RepeatedCompositeFieldContainer[TaskInfo]
    cost: float
    result_cid: str
    def __init__(self, job_id: _Optional[str] = ..., pattern: _Optional[str] = ..., status: _Optional[str] = ..., outputs: _Optional[_Mapping[str, Tensor]] = ..., details: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., tasks: _Optional[_Iterable[_Union[TaskInfo, _Mapping]]] = ..., cost: _Optional[float] = ..., result_cid: _Optional[str] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("id", "cid", "manifest_cid", "format", "size", "inputs", "outputs", "licence", "nodes", "batch_axis")
    ID_FIELD_NUMBER: _ClassVar[int]
    CID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_CID_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    BATCH_AXIS_FIELD_NUMBER: _ClassVar[int]
    id: str
    cid: str
    manifest_cid: str
    format: str
    size: int
    inputs: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    licence: str
    nodes: _containers.RepeatedScalarFieldContainer[str]
    batch_axis: int
    def __init__(self, id: _Optional[str] = ..., cid: _Optional[str] = ..., manifest_cid: _Optional[str] = ..., format: _Optional[str] = ..., size: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ..., licence: _Optional[str] = ..., nodes: _Optional[_Iterable[str]] = ..., batch_axis: _Optional[int] = ...) -> None: ...

class TensorInfo(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[str]] = ...) -> None: ...

class NodeInfo(_message.Message):
    __slots__ = ("peer_id", "name", "state", "role", "capabilities", "load", "models", "cabinets", "price", "last_seen")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    CABINETS_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    name: str
    state: str
    role: str
    capabilities: _struct_pb2.Struct
    load: _struct_pb2.Struct
    models: _containers.RepeatedScalarFieldContainer[str]
    cabinets: _containers.RepeatedCompositeFieldContainer[CabinetInfo]
    price: float
    last_seen: float
    def __init__(self, peer_id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., role: _Optional[str] = ..., capabilities: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., load: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., models: _Optional[_Iterable[str]] = ..., cabinets: _Optional[_Iterable[_Union[CabinetInfo, _Mapping]]] = ..., price: _Optional[float] = ..., last_seen: _Optional[float] = ...) -> None: ...

class CabinetInfo(_message.Message):
    __slots__ = ("name", "rows", "columns", "format")
    class ColumnsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: int
    columns: _containers.ScalarMap[str, str]
    format: str
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[int] = ..., columns: _Optional[_Mapping[str, str]] = ..., format: _Optional[str] = ...) -> None: ...

class OrchestratorInfo(_message.Message):
    __slots__ = ("peer_id", "name", "grpc", "term", "seat", "local_only")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    GRPC_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    SEAT_FIELD_NUMBER: _ClassVar[int]
    LOCAL_ONLY_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    name: str
    grpc: str
    term: int
    seat: int
    local_only: bool
    def __init__(self, peer_id: _Optional[str] = ..., name: _Optional[str] = ..., grpc: _Optional[str] = ..., term: _Optional[int] = ..., seat: _Optional[int] = ..., local_only: _Optional[bool] = ...) -> None: ...

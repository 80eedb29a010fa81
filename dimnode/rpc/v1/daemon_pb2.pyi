from dimnode.rpc.v1 import common_pb2 as _common_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunTaskRequest(_message.Message):
    __slots__ = ("order",)
    ORDER_FIELD_NUMBER: _ClassVar[int]
    order: bytes
    def __init__(self, order: _Optional[bytes] = ...) -> None: ...

class TaskUpdate(_message.Message):
    __slots__ = ("stage", "entry", "piece")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    stage: str
    entry: bytes
    piece: TextPiece
    def __init__(self, stage: _Optional[str] = ..., entry: _Optional[bytes] = ..., piece: _Optional[_Union[TextPiece, _Mapping]] = ...) -> None: ...

class TextPiece(_message.Message):
    __slots__ = ("row", "offset", "text")
    ROW_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    row: int
    offset: int
    text: str
    def __init__(self, row: _Optional[int] = ..., offset: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class CancelTaskRequest(_message.Message):
    __slots__ = ("job_id", "task", "attempt", "ballot")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    BALLOT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    task: str
    attempt: int
    ballot: bytes
    def __init__(self, job_id: _Optional[str] = ..., task: _Optional[str] = ..., attempt: _Optional[int] = ..., ballot: _Optional[bytes] = ...) -> None: ...

class CancelTaskResponse(_message.Message):
    __slots__ = ("cancelled",)
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    cancelled: bool
    def __init__(self, cancelled: _Optional[bool] = ...) -> None: ...

class HealthRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HealthResponse(_message.Message):
    __slots__ = ("status", "peer_id", "name", "uptime")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    status: str
    peer_id: str
    name: str
    uptime: float
    def __init__(self, status: _Optional[str] = ..., peer_id: _Optional[str] = ..., name: _Optional[str] = ..., uptime: _Optional[float] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("stats",)
    STATS_FIELD_NUMBER: _ClassVar[int]
    stats: _struct_pb2.Struct
    def __init__(self, stats: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class PrewarmRequest(_message.Message):
    __slots__ = ("model_cid", "manifest_cid", "providers")
    MODEL_CID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_CID_FIELD_NUMBER: _ClassVar[int]
    PROVIDERS_FIELD_NUMBER: _ClassVar[int]
    model_cid: str
    manifest_cid: str
    providers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model_cid: _Optional[str] = ..., manifest_cid: _Optional[str] = ..., providers: _Optional[_Iterable[str]] = ...) -> None: ...

class PrewarmResponse(_message.Message):
    __slots__ = ("warm",)
    WARM_FIELD_NUMBER: _ClassVar[int]
    warm: bool
    def __init__(self, warm: _Optional[bool] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[_common_pb2.ModelInfo]
    def __init__(self, models: _Optional[_Iterable[_Union[_common_pb2.ModelInfo, _Mapping]]] = ...) -> None: ...
